/** bin/setup.sh on a machine whose apt is in use: a real apt-get, with folders of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { findProgram, type TempDir, tempDir } from './servers.js';

const setup = join(import.meta.dirname, '../../../bin/setup.sh');
// fcntl(2), as apt and dpkg lock: F_SETLK with a write lock on the whole file.
const holdLock =
  'open(F, ">", $ARGV[0]) or die; my $l = pack("s s l! l! i", 1, 0, 0, 0, 0); fcntl(F, 6, $l) or die; $| = 1; print "held\\n"; sleep 600';
const locks = [
  'var/lib/dpkg/lock-frontend',
  'var/lib/dpkg/lock',
  'var/lib/apt/lists/lock',
  'var/cache/apt/archives/lock',
];

describe.skipIf(!findProgram('apt-get'))('bin/setup.sh', () => {
  let folder: TempDir;
  let holder: ChildProcess | undefined;

  beforeAll(async () => {
    folder = await tempDir('setup');
    for (const path of [
      ...locks.map((lock) => dirname(lock)),
      'var/lib/apt/lists/partial',
      'var/cache/apt/archives/partial',
      'etc/apt/apt.conf.d',
      'etc/apt/preferences.d',
      'etc/apt/sources.list.d',
      'cache',
    ])
      await mkdir(join(folder.path, path), { recursive: true });
    await writeFile(join(folder.path, 'var/lib/dpkg/status'), '');
    // Not apt's own folders, nor its sources.
    await writeFile(
      join(folder.path, 'apt.conf'),
      `Dir "${folder.path}/"; Dir::State::status "${folder.path}/var/lib/dpkg/status"; Dir::Etc "${folder.path}/etc/apt"; Debug::NoDropPrivs "1";\n`,
    );
  });
  afterEach(() => void holder?.kill('SIGKILL'));
  afterAll(() => folder?.remove());

  const hold = async (lock: string) => {
    const path = join(folder.path, lock);
    holder = spawn('perl', ['-e', holdLock, path], { stdio: ['ignore', 'pipe', 'inherit'] });
    await new Promise<void>((resolve) => holder?.stdout?.once('data', () => resolve()));
    return path;
  };
  const aptGet = (command: string, seconds = 60, onSaid: (text: string) => void = () => undefined) =>
    new Promise<{ code: number | null; said: string }>((resolve) => {
      const env = {
        ...process.env,
        APT_CONFIG: join(folder.path, 'apt.conf'),
        AIRDOCK_CACHE: join(folder.path, 'cache'),
        AIRDOCK_LOCK_SECONDS: String(seconds),
      };
      const child = spawn('bash', ['-c', `. "$1"; apt_get ${command}`, 'bash', setup], {
        env,
        stdio: ['ignore', 'ignore', 'pipe'],
      });
      let said = '';
      child.stderr.on('data', (chunk: Buffer) => {
        said += chunk.toString();
        onSaid(said);
      });
      child.once('close', (code) => resolve({ code, said }));
    });

  it.each(locks)('waits while somebody holds %s, says who, and goes on', async (lock) => {
    const path = await hold(lock);
    const { code, said } = await aptGet('update', 60, () => void holder?.kill('SIGKILL'));
    expect(said).toContain(`waiting for apt and dpkg, which are in use by ${holder?.pid} (perl `);
    expect(said).toContain(`), ${path}`);
    expect(code).toBe(0);
  });

  it('gives up after a while, and names the holder', async () => {
    const path = await hold('var/lib/apt/lists/lock');
    const { code, said } = await aptGet('update', 2);
    expect(code).toBe(1);
    expect(said).toContain(`still in use after 2 s, by ${holder?.pid} (perl `);
    expect(said).toContain(path);
  });

  it('does not wait for a file that a crash has left', async () => {
    for (const lock of locks) await writeFile(join(folder.path, lock), '');
    expect(await aptGet('update')).toEqual({ code: 0, said: '' });
  });

  it('says why apt-get fails, not only where its log is', async () => {
    const { code, said } = await aptGet('install -y -qq no-such-package');
    expect(code).toBe(1);
    expect(said).toContain('apt-get install failed: E: Unable to locate package no-such-package');
  });
});
