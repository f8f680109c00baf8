import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { tempDir, waitFor } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { endProcess } from './own-process.js';

const run = promisify(execFile);

describe('a process', () => {
  /** What /proc/PID/stat has behind the name. Of the states D is a wait that no signal ends. */
  const look = async (pid: number) => {
    const fields = (await readFile(`/proc/${pid}/stat`, 'latin1')).replace(/^.*\) /s, '').split(' ');
    return { state: fields[0], startTime: fields[19] ?? '' };
  };

  it.each([
    ['at once', 'exec sleep 600'],
    ['by force when it ignores SIGTERM', "trap '' TERM; while true; do sleep 1; done"],
    ['also when it was stopped', 'kill -STOP $$; sleep 600'],
  ])('ends %s', async (_, script) => {
    const child = spawn('sh', ['-c', script], { stdio: 'ignore' });
    const pid = child.pid as number;
    const exited = once(child, 'exit');
    await endProcess({ pid, startTime: (await look(pid)).startTime }, { graceMs: 300 });
    await exited;
  });

  it('that waits for a disk that does not answer is named, and ends when the disk does', async (context) => {
    await using folder = await tempDir('own-process');
    const disk = join(folder.path, 'disk');
    await mkdir(disk);
    const make = 'truncate -s 20M "$0" && mkfs.ext4 -q "$0" && mount -o loop "$0" "$1"';
    const canMount = await run('sh', ['-c', make, join(folder.path, 'image'), disk]).then(
      () => true,
      () => false,
    );
    if (!canMount) return context.skip('no file system can be mounted');
    await writeFile(join(disk, 'file'), '');
    await run('fsfreeze', ['--freeze', disk]);
    const child = spawn('sh', ['-c', 'echo x >>"$0"; exec sleep 600', join(disk, 'file')], { stdio: 'ignore' });
    const exited = once(child, 'exit');
    const pid = child.pid as number;
    try {
      await waitFor(async () => (await look(pid)).state === 'D', { what: 'the process to wait for its disk' });
      const ended = endProcess({ pid, startTime: (await look(pid)).startTime }, { graceMs: 100 });
      await expect(ended).rejects.toMatchObject({
        code: 'process_not_ended',
        details: { pid, detail: expect.stringContaining('after SIGKILL') as string },
      });
    } finally {
      await run('fsfreeze', ['--unfreeze', disk]);
      await exited;
      await run('umount', ['--lazy', disk]);
    }
  });
});
