import { execFile } from 'node:child_process';
import { mkdir, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { findProgram, freePort, startJsonServer, type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { SshConnection } from './connection.js';
import { HostSystem } from './host-system.js';

const run = promisify(execFile);
let folder: TempDir;
let server: Awaited<ReturnType<typeof startJsonServer>>;
beforeAll(async () => {
  [folder, server] = await Promise.all([tempDir('host-system'), startJsonServer({ '/v2/': {} })]);
});
afterAll(async () => {
  await server?.stop();
  await folder?.remove();
});

/** A host that has nothing but these programs, and a proxy that is not there. */
async function hostWith(programs: string[]): Promise<HostSystem> {
  const path = join(folder.path, programs.join('-') || 'none');
  await mkdir(path, { recursive: true });
  for (const program of programs) await symlink(findProgram(program) ?? '', join(path, program));
  const exec = async ([, ...rest]: string[]) => ({ exitCode: 0, ...(await run('/bin/sh', rest, { env: { PATH: path, http_proxy: 'http://127.0.0.1:9' } })) });
  return new HostSystem({ exec } as unknown as SshConnection, new AbortController().signal);
}

describe('statusOf', () => {
  const ways = [['curl'], ['wget'], ['bash', 'timeout']].filter((programs) => programs.every((program) => findProgram(program)));

  it.each(ways.map((programs) => [programs.join(' and '), programs] as const))('is asked with %s', async (_, programs) => {
    const host = await hostWith(programs);
    expect(await host.statusOf(`${server.url}/v2/`)).toBe(200);
    expect(await host.statusOf(`${server.url}/nothing`)).not.toBe(200);
    expect(await host.statusOf(`http://127.0.0.1:${await freePort()}/v2/`)).toBe(0);
  });

  it('is not known where the host has nothing to ask with', async () => {
    expect(await (await hostWith([])).statusOf(`${server.url}/v2/`)).toBeUndefined();
  });
});
