import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { outputOf, startDetached, startFilter, startOwned } from './start-program.js';

let folder: TempDir;
const started: ChildProcess[] = [];
beforeEach(async () => {
  folder = await tempDir('programs');
});
afterEach(async () => {
  for (const child of started.splice(0)) child.kill('SIGKILL');
  await folder.remove();
});
const at = (name: string) => join(folder.path, name);
const isRunning = (pid: number) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

describe('outputOf', () => {
  it('returns what was printed, and tells the program nothing of our environment but where programs are', async () => {
    process.env.AIRDOCK_TEST_SECRET = 'sesame';
    try {
      const words = await outputOf(['env'], { timeoutMs: 10_000 });
      expect(words).toContain(`PATH=${process.env.PATH}`);
      expect(words).not.toContain('sesame');
    } finally {
      delete process.env.AIRDOCK_TEST_SECRET;
    }
  });

  it('kills what takes too long, also when it ignores being asked', async () => {
    const script = `trap '' TERM; echo $$ >${at('pid')}; while :; do sleep 0.05; done`;
    const error = { killed: true, signal: 'SIGKILL' };
    await expect(outputOf(['sh', '-c', script], { timeoutMs: 500 })).rejects.toMatchObject(error);
    expect(isRunning(Number(await readFile(at('pid'), 'utf8')))).toBe(false);
  });

  it('kills what prints too much', async () => {
    await expect(outputOf(['yes'], { timeoutMs: 20_000 })).rejects.toMatchObject({
      code: 'ERR_CHILD_PROCESS_STDIO_MAXBUFFER',
    });
  });

  it('says how a program failed, and what it had printed until then', async () => {
    const failed = outputOf(['sh', '-c', 'echo half; exit 3'], { timeoutMs: 10_000 });
    await expect(failed).rejects.toMatchObject({ code: 3, stdout: 'half\n' });
    await expect(outputOf(['/no/such/program'], { timeoutMs: 10_000 })).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

describe('a filter', () => {
  it('turns its input into its output, and ends with it', async () => {
    const filter = startFilter(['tr', 'a-z', 'A-Z']);
    filter.stdin.end('layers');
    expect([await text(filter.stdout), await filter.ended, filter.words()]).toEqual(['LAYERS', 0, '']);
  });

  it('keeps no more than the first words about a failure', async () => {
    const filter = startFilter(['sh', '-c', 'yes damaged | head -c 100000 >&2; exit 7']);
    filter.stdin.end();
    filter.stdout.resume();
    expect(await filter.ended).toBe(7);
    expect(filter.words().length).toBeLessThanOrEqual(500);
    expect(filter.words()).toMatch(/^damaged\ndamaged/);
  });

  it('that is no program rejects', async () => {
    const filter = startFilter(['/no/such/program']);
    filter.stdin.on('error', () => undefined);
    await expect(filter.ended).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

it('an owned program is ended with its owner, however that dies', async () => {
  const program = `
    const { startOwned } = await import('${join(import.meta.dirname, '../../dist/programs/start-program.js')}');
    console.log(startOwned(['sleep', '600'], 'KILL').pid);
    setInterval(() => undefined, 1000);`;
  const owner = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  started.push(owner);
  const [line] = (await once(owner.stdout, 'data')) as [Buffer];
  const pid = Number(line.toString());
  expect(isRunning(pid)).toBe(true);
  owner.kill('SIGKILL');
  await expect.poll(() => isRunning(pid), { timeout: 20_000 }).toBe(false);
});

it('an owned program gets the environment that it is given', async () => {
  const child = startOwned(['sh', '-c', 'echo "$GREETING"'], 'TERM', {
    env: { PATH: process.env.PATH, GREETING: 'hello' },
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  started.push(child);
  expect(await text(child.stdout as NodeJS.ReadableStream)).toBe('hello\n');
});

it('a detached program leads a session of its own, and writes to its log', async () => {
  await using log = await open(at('log'), 'a');
  const env = { PATH: process.env.PATH };
  const child = await startDetached(['sh', '-c', 'echo begun; echo odd >&2; exec sleep 600'], { env, logFd: log.fd });
  started.push(child);
  await expect.poll(() => readFile(at('log'), 'utf8')).toBe('begun\nodd\n');
  // The sixth field of proc(5) is the session.
  expect((await readFile(`/proc/${child.pid}/stat`, 'utf8')).split(') ')[1]?.split(' ')[3]).toBe(String(child.pid));
  await expect(startDetached(['/no/such/program'], { env, logFd: log.fd })).rejects.toMatchObject({ code: 'ENOENT' });
});
