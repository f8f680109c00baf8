import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { connect } from 'node:net';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { findProgram, startPostgres, startRedis, startRegistry, tempDir, waitFor } from './servers.js';

const run = promisify(execFile);
const redisCli = async (url: string, ...args: string[]) =>
  (await run('redis-cli', [...(url.startsWith('unix:') ? ['-s', url.slice(7)] : ['-u', url]), ...args])).stdout.trim();
const isAlive = (pid: number) => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

describe('waitFor', () => {
  it('returns what the condition returns', async () => {
    let calls = 0;
    expect(await waitFor(() => (++calls === 3 ? 'done' : undefined))).toBe('done');
  });

  it('names what it waited for and the last error', async () => {
    const broken = () => Promise.reject(new Error('not yet'));
    await expect(waitFor(broken, { timeoutMs: 30, what: 'the impossible' })).rejects.toThrow(
      'waited 30 ms for the impossible: not yet',
    );
  });
});

describe('startRedis', () => {
  it('answers, and comes back empty on the same address after a crash', async () => {
    await using redis = await startRedis();
    expect(await redisCli(redis.url, 'set', 'key', 'value')).toBe('OK');
    await redis.kill();
    await expect(redisCli(redis.url, 'ping')).rejects.toThrow('refused');
    await redis.restart();
    expect(await redisCli(redis.url, 'exists', 'key')).toBe('0');
    expect(await redisCli(redis.url, 'config', 'get', 'maxmemory-policy')).toContain('noeviction');
  });

  it('listens on a Unix socket only', async () => {
    await using dir = await tempDir();
    await using redis = await startRedis({ socket: `${dir.path}/redis.sock` });
    expect(await redisCli(redis.url, 'ping')).toBe('PONG');
    expect(await redisCli(redis.url, 'config', 'get', 'port')).toMatch(/0$/);
  });
});

describe('startRegistry', () => {
  const upload = (url: string) => fetch(`${url}/v2/some/image/blobs/uploads/`, { method: 'POST' });

  it('takes uploads, and goes on with them after a restart', async () => {
    await using registry = await startRegistry();
    const started = await upload(registry.url);
    expect(started.status).toBe(202);
    await registry.kill();
    await registry.restart();
    expect((await fetch(started.headers.get('location') ?? '')).status).toBe(204);
    await registry.stop();
    expect(existsSync(registry.storageDir)).toBe(false);
  });

  it('refuses writes when it is read-only, over a storage that it shares and leaves', async () => {
    await using writable = await startRegistry();
    const readOnly = await startRegistry({ readOnly: true, storageDir: writable.storageDir });
    expect((await upload(readOnly.url)).status).toBe(405);
    expect((await fetch(`http://${readOnly.host}/v2/_catalog`)).status).toBe(200);
    await readOnly.stop();
    expect(existsSync(writable.storageDir)).toBe(true);
  });

  it('tells the reason when it cannot start', async () => {
    await using registry = await startRegistry();
    await expect(startRegistry({ port: registry.port })).rejects.toThrow('address already in use');
  });
});

describe('startPostgres', () => {
  it('accepts the superuser on loopback, and leaves nothing', async () => {
    const postgres = await startPostgres();
    const { stdout } = await run('psql', [
      '-Atc',
      'create database a',
      '-c',
      "select current_setting('fsync')",
      postgres.url,
    ]);
    expect(stdout).toContain('off');
    await postgres.stop();
    expect(existsSync(postgres.socketDir)).toBe(false);
    await expect(
      new Promise((resolve, reject) =>
        connect(postgres.port, '127.0.0.1', () => resolve('open')).once('error', reject),
      ),
    ).rejects.toThrow('REFUSED');
  });
});

describe('a test process that is killed', () => {
  it.runIf(findProgram('setpriv'))('takes its servers with it', async () => {
    const script = `import { ServerProcess } from ${JSON.stringify(import.meta.resolve('./servers.ts'))};
      const server = new ServerProcess({ program: '/bin/sleep', args: ['300'], ready: async () => true });
      await server.start();
      console.log(server.pid);`;
    // Node strips the types itself; parameter properties need the transform.
    const parent = spawn(process.execPath, [
      '--experimental-transform-types',
      '--no-warnings',
      '--input-type=module',
      '-e',
      script,
    ]);
    let output = '';
    parent.stdout.on('data', (chunk: Buffer) => {
      output += chunk.toString();
    });
    const pid = Number(await waitFor(() => output.trim(), { timeoutMs: 20_000, what: 'the server to start' }));
    expect(isAlive(pid)).toBe(true);
    parent.kill('SIGKILL');
    await waitFor(() => !isAlive(pid), { what: 'the server to end' });
  });
});
