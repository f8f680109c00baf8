import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { tempDir } from '@airdock/testing/servers';
import { expect, it } from 'vitest';

it('a process whose threads hang in a pipe ends within its bound after SIGTERM, though exit waits for them', async () => {
  await using folder = await tempDir('hard-stop');
  const pipe = join(folder.path, 'pipe');
  execFileSync('mkfifo', [pipe]);
  const program = `
    const { open } = await import('node:fs/promises');
    const { killAfter } = await import('${join(import.meta.dirname, '../dist/hard-stop.js')}');
    for (let thread = 0; thread < 4; thread++) open('${pipe}').catch(() => undefined);
    process.on('SIGTERM', () => { killAfter(1000); process.exit(0); });
    setTimeout(() => console.log('hangs'), 200);
    setInterval(() => undefined, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGINT'), 60_000);
  const [code, signal] = await exited;
  clearTimeout(timer);
  expect({ code, signal }).toEqual({ code: null, signal: 'SIGKILL' });
});
