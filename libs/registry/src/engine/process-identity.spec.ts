/** How processes of ours are told from others: by real processes of this machine. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { endProcess, foreignListeners, ProcessIdentity, processesThatShow } from './own-process.js';

const uid = process.getuid?.() ?? -1;
let dir: TempDir;
let children: ChildProcess[] = [];
beforeEach(async () => {
  dir = await tempDir('process-identity');
});
afterEach(async () => {
  await Promise.all(children.map(end));
  children = [];
  await dir.remove();
});

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}
/** A program that waits, with what it has in its environment. */
async function start(
  environment: Record<string, string>,
  words: string[] = [],
): Promise<ChildProcess & { pid: number }> {
  const child = spawn('sleep', ['600', ...words.map(() => '1')], {
    stdio: 'ignore',
    env: { PATH: process.env.PATH, ...environment },
  });
  children.push(child);
  await once(child, 'spawn');
  const { pid } = child;
  if (pid === undefined) throw new Error('sleep has no pid');
  return Object.assign(child, { pid });
}
const identity = (name = 'registry', secret = 'secret', users = [uid]) =>
  new ProcessIdentity(join(dir.path, `${name}.process`), secret, users);
const recordFile = () => join(dir.path, 'registry.process');

describe('a process of ours', () => {
  it('is found by its mark, with what it was started with', async () => {
    const ours = identity();
    const child = await start(ours.environment('v1'));
    expect(await ours.versionOf(child.pid)).toBe('v1');
    const found = await ours.find();
    expect(found).toMatchObject([{ pid: child.pid, version: 'v1' }]);
    expect(found[0]?.program).toMatch(/\/(sleep|coreutils|busybox)$/);
  });

  it.each([
    ['without a mark', {}],
    ['with an empty mark', { AIRDOCK_PROCESS: '' }],
    ['with the mark of another secret', identityOf('registry', 'other')],
    ['with the mark of another file', identityOf('front', 'secret')],
    ['with a mark that has our length', { AIRDOCK_PROCESS: `${'0'.repeat(64)}.v1` }],
  ])('is none %s', async (_, environment) => {
    const child = await start(typeof environment === 'function' ? environment() : environment);
    expect(await identity().versionOf(child.pid)).toBeUndefined();
    expect(await identity().find()).toEqual([]);
  });
  function identityOf(name: string, secret: string) {
    return () => identity(name, secret).environment('v1');
  }

  it('is none of a user that it may not have, whatever its mark', async () => {
    const child = await start(identity().environment('v1'));
    const ofOther = identity('registry', 'secret', [uid + 1]);
    expect(await ofOther.versionOf(child.pid)).toBeUndefined();
    await ofOther.record(child.pid, 'v1');
    expect(await readdir(dir.path)).toEqual([]);
  });

  it('is not there any more when it has ended, also where somebody waits to reap it', async () => {
    const ours = identity();
    const child = await start(ours.environment('v1'));
    await ours.record(child.pid, 'v1');
    await end(child);
    expect(await ours.recorded()).toBeUndefined();
    expect(await ours.find()).toEqual([]);
    expect(await ours.versionOf(child.pid)).toBeUndefined();
  });
});

describe('what is written down of a process', () => {
  it('is read again as that process, and is for its owner alone', async () => {
    const ours = identity();
    const child = await start(ours.environment('v1'));
    await ours.record(child.pid, 'v1');
    expect(await ours.recorded()).toMatchObject({ pid: child.pid, version: 'v1' });
    expect((await stat(recordFile())).mode & 0o777).toBe(0o600);
    expect(await readdir(dir.path)).toEqual(['registry.process']);
  });

  it.each([
    ['another start, as of an id that was used again', { startTime: '1' }],
    ['another boot', { bootId: '00000000-0000-0000-0000-000000000000' }],
    ['another program', { program: '/usr/bin/other' }],
    ['no id', { pid: 'self' }],
    ['no version', { version: 7 }],
  ])('counts for nothing with %s', async (_, change) => {
    const ours = identity();
    const child = await start(ours.environment('v1'));
    await ours.record(child.pid, 'v1');
    const noted = JSON.parse(await readFile(recordFile(), 'utf8')) as object;
    await writeFile(recordFile(), JSON.stringify({ ...noted, ...change }));
    expect(await ours.recorded()).toBeUndefined();
    // It is a short cut only.
    expect(await ours.find()).toHaveLength(1);
  });

  it.each(['', '{', 'null', '[]', '"x"', '\0'])(
    'counts for nothing when somebody has written %j over it',
    async (text) => {
      await writeFile(recordFile(), text);
      expect(await identity().recorded()).toBeUndefined();
    },
  );

  it('is nothing where nothing was written', async () => expect(await identity().recorded()).toBeUndefined());
});

describe('endProcess', () => {
  it('touches no other process that got the same id', async () => {
    const child = await start({});
    await endProcess({ pid: child.pid, startTime: '1' });
    expect(child.exitCode ?? child.signalCode).toBeNull();
    expect(() => process.kill(child.pid, 0)).not.toThrow();
  });

  it('has nothing to do with one that has ended', async () => {
    const child = await start({});
    const [shown] = (await processesThatShow((words) => words[1] === '600')).filter(({ pid }) => pid === child.pid);
    await end(child);
    await expect(endProcess({ pid: child.pid, startTime: shown?.startTime ?? '' })).resolves.toBeUndefined();
  });
});

it('processesThatShow tells whose processes they are that show some words', async () => {
  const child = await start({}, ['1']);
  await waitFor(async () => (await shown()).length === 1, { what: 'the program to be seen' });
  expect(await shown()).toMatchObject([{ pid: child.pid, uid, startTime: expect.stringMatching(/^\d+$/) as string }]);
  async function shown() {
    const found = await processesThatShow(([program, ...words]) => program === 'sleep' && words.join(' ') === '600 1 ');
    return found.filter(({ pid }) => pid === child.pid);
  }
});

describe('foreignListeners', () => {
  async function listenAt(host: string): Promise<AsyncDisposable & { port: number }> {
    const server = createServer();
    server.listen(0, host);
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    return { port, [Symbol.asyncDispose]: async () => void (await new Promise((resolve) => server.close(resolve))) };
  }

  it.each(['127.0.0.1', '0.0.0.0'])('names who listens at %s, unless it is the one that should', async (host) => {
    await using server = await listenAt(host);
    expect(await foreignListeners(server.port, process.pid)).toEqual([]);
    expect(await foreignListeners(server.port, undefined)).toEqual([
      { port: server.port, pid: process.pid, uid, program: expect.stringContaining('node') as string },
    ]);
  });

  it('names nobody who listens where localhost does not lead, nor on another port', async () => {
    await using server = await listenAt('127.0.0.2');
    expect(await foreignListeners(server.port, undefined)).toEqual([]);
    expect(await foreignListeners(1, undefined)).toEqual([]);
  });
});
