import { execFile } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { freePort, tempDir } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { inSandbox, programFile, type Sandbox, whyNoSandbox } from './sandbox.js';

const run = promisify(execFile);

/** What a shell prints that was taken over, and how it ends. */
async function shell(script: string, sandbox: Sandbox = {}): Promise<string> {
  const [program, ...args] = inSandbox(['/bin/sh', '-c', `{ ${script}; } 2>&1`], sandbox);
  return (
    await run(program, args).catch((error: { stdout: string }) => ({ stdout: `failed: ${error.stdout}` }))
  ).stdout.trim();
}

describe.skipIf(whyNoSandbox())('a sandbox', () => {
  it('shows no file but those that are named, and lets write only where it may', async () => {
    await using folder = await tempDir('sandbox');
    const at = (path: string) => join(folder.path, path);
    await mkdir(at('storage'));
    await mkdir(at('sockets'));
    await writeFile(at('secrets.key'), 'secret', { mode: 0o600 });
    await writeFile(at('config.yml'), 'config', { mode: 0o600 });
    const sandbox = { writable: [at('storage')], readable: [at('config.yml')] };
    expect(await shell(`cat ${at('config.yml')}; echo x >${at('storage/blob')}`, sandbox)).toBe('config');
    expect(await readFile(at('storage/blob'), 'utf8')).toBe('x\n');
    for (const path of [
      at('secrets.key'),
      '/etc/shadow',
      '/root/.bashrc',
      '/proc/1/root/etc/shadow',
      `/proc/${process.pid}/environ`,
    ])
      expect(await shell(`cat ${path}`, sandbox), path).toMatch(/^failed:.*No such file/s);
    expect(await shell(`echo x >${at('config.yml')}`, sandbox)).toMatch(/^failed:.*Read-only/s);
    expect(await shell('echo x >/usr/bin/true', sandbox)).toMatch(/^failed:.*Read-only/s);
    expect(await shell(`ls /run /var /home`, sandbox)).toMatch(/^failed:/);
  });

  it('has no other processes, no network and no capabilities', async () => {
    const port = await freePort();
    const server = createServer((socket) => socket.end('hello')).listen(port, '127.0.0.1');
    expect(await shell(`kill -0 ${process.pid}`)).toMatch(/^failed:.*No such process/s);
    const connect = `bash -c 'cat </dev/tcp/127.0.0.1/${port}'`;
    expect(await shell(connect)).toMatch(/^failed:.*(refused|unreachable)/s);
    expect(await shell(connect, { hasNetwork: true })).toBe('hello');
    await new Promise((resolve) => server.close(resolve));
    expect(await shell('grep -E "CapEff|CapBnd|NoNewPrivs" /proc/self/status')).toMatch(
      /^CapEff:\s0+\nCapBnd:\s0+\nNoNewPrivs:\s1$/,
    );
  });
});

it('programFile follows a name to its file', () => {
  expect(programFile('sh')).toMatch(/^\/.*sh$/);
  expect(programFile('/nowhere/sh')).toBeUndefined();
});
