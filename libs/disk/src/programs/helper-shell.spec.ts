import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { runProgram, startHelperShell } from './helper-shell.js';

/** Name, state and parent of each process, as proc(5) says them. */
const processes = () =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        const [, state, parent] = /\) (\S) (\d+) /.exec(readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? [];
        return [{ pid: Number(pid), state, parent: Number(parent) }];
      } catch {
        return [];
      }
    });

describe('the helper shell', () => {
  it('waits for all that it has started: none stays a zombie', async () => {
    startHelperShell();
    for (let round = 0; round < 25; round++) await runProgram('true', []);
    const ends = await Promise.allSettled(
      Array.from({ length: 25 }, (_, index) => runProgram(index % 2 ? 'false' : 'true', [])),
    );
    expect(ends.filter(({ status }) => status === 'rejected')).toHaveLength(12);
    const all = processes();
    const own = new Set(all.filter(({ parent }) => parent === process.pid).map(({ pid }) => pid));
    expect(own.size).toBeGreaterThan(0);
    expect(all.filter(({ state, parent }) => state === 'Z' && own.has(parent))).toEqual([]);
  });

  it('leaves no zombie of ten thousand compressors, some of which fail', async () => {
    const started = 10_000;
    const before = new Set(processes().map(({ pid }) => pid));
    let failures = 0;
    // As the layer unpackers do: a few at a time, each with files as its input and output.
    const worker = async (own: number) => {
      for (let index = own; index < started; index += 4)
        await runProgram(index % 100 ? 'true' : 'false', []).catch(() => (failures += 1));
    };
    await Promise.all([0, 1, 2, 3].map(worker));
    expect(failures).toBe(started / 100);
    // Of others that run beside this test too some may be dead for a moment: ours are below the shell or this process.
    const all = processes().filter(({ pid }) => !before.has(pid));
    const ours = new Set(
      processes()
        .filter(({ parent }) => parent === process.pid)
        .map(({ pid }) => pid),
    );
    expect(all.filter(({ state, parent }) => state === 'Z' && (parent === process.pid || ours.has(parent)))).toEqual(
      [],
    );
  });

  it('says how a program failed', async () => {
    await expect(runProgram('sh', ['-c', 'echo why >&2; exit 3'])).rejects.toMatchObject({
      code: 'internal_error',
      details: { detail: 'sh ended with 3: why' },
    });
    await expect(runProgram('/no/such/program', [])).rejects.toMatchObject({
      details: { detail: expect.stringContaining('127') as string },
    });
  });
});
