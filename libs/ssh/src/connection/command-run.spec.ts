/** One command by itself: the channel is a stream of this process, which says and takes what a host would. */
import { Duplex, PassThrough, Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import type { ClientChannel } from 'ssh2';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { HostBuffers } from '../command/host-buffers.js';
import { beginOf, endOf, newMark } from '../command/shell-line.js';
import { CommandRun, type CommandRunOptions } from './command-run.js';
import { followSession } from './ssh-session.js';

const mark = newMark();

/** The host's side of a channel. */
class HostChannel extends Duplex {
  readonly stderr = new PassThrough();
  readonly signals: string[] = [];
  input = '';
  isClosed = false;

  get stdin(): this {
    return this;
  }
  override _read(): void {}
  override _write(chunk: Buffer, _: BufferEncoding, done: () => void): void {
    this.input += chunk.toString();
    done();
  }
  signal(name: string): void {
    this.signals.push(name);
  }
  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.emit('close');
  }
  /** What the program prints, between the marks. */
  says(text: string, exitCode = 0, errors = ''): void {
    this.push(`${beginOf(mark)}${text}${endOf(mark)}${exitCode}\n`);
    this.stderr.push(`${beginOf(mark)}${errors}${endOf(mark)}${exitCode}\n`);
  }
  ends(exitCode: number | null = 0): void {
    this.emit('exit', exitCode);
    this.push(null);
    this.stderr.push(null);
    this.close();
  }
}

let channel: HostChannel;
let buffers: HostBuffers;
beforeEach(() => {
  channel = new HostChannel();
  buffers = new HostBuffers();
});
afterEach(() => vi.useRealTimers());

const begin = (more: Partial<CommandRunOptions> = {}) =>
  new CommandRun(followSession(channel as unknown as ClientChannel), {
    name: 'tool',
    mark,
    buffers,
    errors: {
      broken: (cause) => new AppError('host_unreachable', {}, { cause }),
      unusable: (exitCode, said) => new AppError('host_shell_unusable', { detail: `${exitCode}: ${said}` }),
    },
    ...more,
  });
/** Listened for at once: it comes while the clock is moved on. */
const failureOf = (result: Promise<unknown>): Promise<unknown> =>
  result.then(
    () => undefined,
    (error: unknown) => error,
  );
/** What was said is read in a later turn than it is pushed. */
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

describe('a command', () => {
  it('gives both outputs and its exit code, and keeps no memory of the host', async () => {
    const run = begin();
    const result = run.result();
    channel.says('out\n', 3, 'err\n');
    await turn();
    expect(buffers.bytes).toBeGreaterThan(0);
    channel.ends(3);
    expect(await result).toEqual({ exitCode: 3, stdout: 'out\n', stderr: 'err\n' });
    expect(buffers.bytes).toBe(0);
  });

  it('has the exit code of the program, whatever the shell ends with', async () => {
    const result = begin().result();
    channel.says('', 4);
    await turn();
    channel.ends(0);
    expect(await result).toMatchObject({ exitCode: 4 });
  });

  it('gets its first line before its input, and the end of both', async () => {
    const result = begin({ firstLine: 'password', stdin: 'content' }).result();
    await turn();
    expect(channel.input).toBe('password\ncontent');
    expect(channel.writableEnded).toBe(true);
    channel.says('');
    await turn();
    channel.ends();
    await result;
  });

  it('gets a stream behind its first line', async () => {
    const result = begin({ firstLine: 'password', stdin: Readable.from(['a', 'b']) }).result();
    await vi.waitFor(() => expect(channel.input).toBe('password\nab'));
    channel.says('done');
    await turn();
    channel.ends();
    expect(await result).toMatchObject({ stdout: 'done' });
  });

  it('tells what a login says around it from what it says itself', async () => {
    const run = begin();
    const result = run.result();
    channel.push('motd\n');
    channel.says('own');
    await turn();
    channel.ends();
    expect(await result).toMatchObject({ stdout: 'own' });
    expect(run.noise[0]).toContain('motd');
  });

  it.each([
    ['the login runs nothing', 1, '1: no shell'],
    ['the login ends well, and has run nothing', 0, '0: no shell'],
  ])('is unusable where %s', async (_, exitCode, said) => {
    const result = begin().result();
    channel.push('no shell');
    await turn();
    channel.ends(exitCode);
    await expect(result).rejects.toMatchObject({ code: 'host_shell_unusable', details: { detail: said } });
  });

  it('is broken where the channel closes without an exit code', async () => {
    const result = begin().result();
    channel.close();
    await expect(result).rejects.toMatchObject({ code: 'host_unreachable' });
    expect(buffers.bytes).toBe(0);
  });

  it('that a signal of the host ended has the code 255', async () => {
    const result = begin().result();
    channel.push(beginOf(mark));
    await turn();
    channel.ends(null);
    expect(await result).toMatchObject({ exitCode: 255 });
  });

  it('that prints more than is read of it ends, and says so with its name', async () => {
    const result = begin().result();
    channel.push(beginOf(mark));
    channel.push(Buffer.alloc(2 * 1024 * 1024, 'x'));
    await expect(result).rejects.toMatchObject({
      code: 'host_output_exceeded',
      details: { detail: expect.stringMatching(/^tool: /) as string },
    });
    expect(channel.signals).toEqual(['TERM']);
    expect(channel.isClosed).toBe(true);
    expect(buffers.bytes).toBe(0);
  });

  it('ends with the reason of its signal, also where that came first', async () => {
    const reason = new Error('cancelled');
    await expect(begin({ signal: AbortSignal.abort(reason) }).result()).rejects.toBe(reason);
    expect([channel.signals, channel.isClosed]).toEqual([['TERM'], true]);
  });

  it('ends with the reason of its signal while its input waits to be taken', async () => {
    const called = new AbortController();
    const stdin = new PassThrough();
    const result = begin({ signal: called.signal, stdin }).result();
    stdin.write('a');
    await vi.waitFor(() => expect(channel.input).toBe('a'));
    called.abort(new Error('cancelled'));
    await expect(result).rejects.toThrow('cancelled');
    expect(stdin.destroyed).toBe(true);
  });

  it('that ends well before it has read its input has failed', async () => {
    const result = begin({ stdin: new PassThrough() }).result();
    channel.says('');
    await turn();
    channel.ends();
    await expect(result).rejects.toMatchObject({ code: 'host_command_failed' });
  });

  it('that fails before it has read its input says why by its exit code', async () => {
    const result = begin({ stdin: new PassThrough() }).result();
    channel.says('', 7, 'disk full');
    await turn();
    channel.ends(7);
    expect(await result).toMatchObject({ exitCode: 7, stderr: 'disk full' });
  });
});

describe('the time of a command', () => {
  beforeEach(() =>
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'performance', 'Date'] }),
  );

  it('is over after its deadline, whatever it prints', async () => {
    const result = begin({ deadlineMs: 5_000, stallTimeoutMs: 60_000 }).result();
    const failure = failureOf(result);
    channel.push(beginOf(mark));
    for (let second = 0; second < 6; second++) {
      channel.push('.');
      await vi.advanceTimersByTimeAsync(1_000);
    }
    expect(await failure).toMatchObject({ code: 'host_command_timeout', details: { detail: 'tool after 5 s' } });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('is over when it does nothing for too long', async () => {
    const failure = failureOf(begin({ stallTimeoutMs: 2_000, deadlineMs: 60_000 }).result());
    await vi.advanceTimersByTimeAsync(5_000);
    expect(await failure).toMatchObject({ code: 'host_timeout', details: { detail: 'tool did nothing for 2 s' } });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('is over when the login waits for an answer, and has said something', async () => {
    const result = begin({ stallTimeoutMs: 600_000, deadlineMs: 600_000 }).result();
    const failure = failureOf(result);
    channel.push('Choose: ');
    await vi.advanceTimersByTimeAsync(300_000);
    expect(await failure).toMatchObject({ code: 'host_shell_unusable', details: { detail: 'undefined: Choose: ' } });
  });

  it('is not waited for where the program has ended, and what it left keeps the channel open', async () => {
    const result = begin().result();
    channel.says('done');
    channel.emit('exit', 0);
    await turn();
    await vi.advanceTimersByTimeAsync(500);
    expect(await result).toMatchObject({ exitCode: 0, stdout: 'done' });
    expect(channel.isClosed).toBe(true);
  });
});
