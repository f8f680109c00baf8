/** `bin/airdock demo` as a newcomer runs it, and that it leaves nothing behind. */
import { spawn } from 'node:child_process';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { isPortFree, tempDir, waitFor } from '@airdock/testing/servers';
import { expect, it } from 'vitest';
import { repository } from '../support/du.js';
import { processesOf } from '../support/processes.js';

const limitMs = 180_000;

it('bin/airdock demo verifies every step, ends with 0, and leaves no process, no listener and no file', async () => {
  await using folder = await tempDir('demo-e2e');
  // All that it starts inherits the variable and keeps its files there: so we know what belongs to it.
  const child = spawn(join(repository, 'bin/airdock'), ['demo'], {
    env: { ...process.env, TMPDIR: folder.path },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const)
    child[name].on('data', (chunk: Buffer) => {
      output[name] += chunk.toString();
    });
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  const timer = setTimeout(() => child.kill('SIGTERM'), limitMs);
  const exitCode = await ended;
  clearTimeout(timer);
  expect({
    exitCode,
    stderr: exitCode === 0 ? '' : output.stderr,
    stdout: exitCode === 0 ? '' : output.stdout,
  }).toMatchObject({ exitCode: 0 });

  const lines = output.stdout.trim().split('\n');
  expect(lines.at(-1)).toMatch(
    /done(: every step was verified, and nothing is left running|, without the host's part: .+)$/,
  );
  expect(lines.length).toBeGreaterThan(6);
  for (const step of ['DU up', 'push', 'catalogue', 'cluster', 'backup', 'restore brought'])
    expect(output.stdout).toContain(step);

  await waitFor(async () => (await processesOf(folder.path)).length === 0, {
    what: 'the last process to be gone',
    timeoutMs: 5_000,
  }).catch(() => undefined);
  expect(await processesOf(folder.path)).toEqual([]);
  const ports = [...output.stdout.matchAll(/localhost:(\d+)/g)].map(([, port]) => Number(port));
  expect(ports.length).toBeGreaterThan(0);
  for (const port of new Set(ports)) expect(await isPortFree(port), `port ${port}`).toBe(true);
  // What tools of Node.js compiled, they keep there for next time.
  expect((await readdir(folder.path)).filter((name) => name !== 'node-compile-cache')).toEqual([]);
});
