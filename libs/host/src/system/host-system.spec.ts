import { execFile } from 'node:child_process';
import { mkdir, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { findProgram, freePort, startJsonServer, type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HostSystem, upstreamVersion } from './host-system.js';

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
  const exec = async ([, ...rest]: string[]) => ({
    exitCode: 0,
    ...(await run('/bin/sh', rest, { env: { PATH: path, http_proxy: 'http://127.0.0.1:9' } })),
  });
  return new HostSystem({ exec } as unknown as SshConnection, new AbortController().signal);
}

describe('statusOf', () => {
  const ways = [['curl'], ['wget'], ['bash', 'timeout']].filter((programs) =>
    programs.every((program) => findProgram(program)),
  );

  it.each(ways.map((programs) => [programs.join(' and '), programs] as const))(
    'is asked with %s',
    async (_, programs) => {
      const host = await hostWith(programs);
      expect(await host.statusOf(`${server.url}/v2/`)).toBe(200);
      expect(await host.statusOf(`${server.url}/nothing`)).not.toBe(200);
      expect(await host.statusOf(`http://127.0.0.1:${await freePort()}/v2/`)).toBe(0);
    },
  );

  it('is not known where the host has nothing to ask with', async () => {
    expect(await (await hostWith([])).statusOf(`${server.url}/v2/`)).toBeUndefined();
  });
});

/** A host that answers commands, of which the first matching part decides. */
const answering = (answers: Record<string, string>) => {
  const exec = async (argv: string[]) => ({
    exitCode: 0,
    stdout: Object.entries(answers).find(([part]) => argv.join(' ').includes(part))?.[1] ?? '',
    stderr: '',
  });
  const run = async (argv: string[]) => (await exec(argv)).stdout;
  return new HostSystem({ exec, run } as unknown as SshConnection, new AbortController().signal);
};

describe('offeredVersions', () => {
  it('are those of apt', async () => {
    const host = answering({
      madison:
        '   kubeadm | 1.21.14-00 | http://127.0.0.1:5102/k8s ./ Packages\n   kubeadm | 1.20.11-00 | http://127.0.0.1:5102/k8s ./ Packages\n',
    });
    expect(await host.offeredVersions('debian', 'kubeadm')).toEqual(['1.21.14-00', '1.20.11-00']);
  });

  it('are those of dnf, without what is only installed', async () => {
    const host = answering({
      'command -v dnf': '/usr/bin/dnf',
      '--showduplicates':
        'Installed Packages\nkubeadm.x86_64  1.19.16-0  @airdock-k8s\nAvailable Packages\nkubeadm.x86_64   1.20.11-0   airdock-k8s\nkubeadm.x86_64 1:1.21.14-0 airdock-k8s\n',
    });
    expect(await host.offeredVersions('redhat', 'kubeadm')).toEqual(['1.20.11-0', '1:1.21.14-0']);
    expect(await host.offeredVersions('redhat', 'kubelet')).toEqual([]);
  });

  it.each([
    ['1.20.11-00', '1.20.11'],
    ['1:1.20.11-1.1', '1.20.11'],
    ['1.20.11', '1.20.11'],
  ])('%s is %s of the makers', (version, upstream) => {
    expect(upstreamVersion(version)).toBe(upstream);
  });
});
