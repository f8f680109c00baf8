import { execFileSync } from 'node:child_process';
import { symlink } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { connectSsh } from '@airdock/ssh/connection/connect';
import { parseHostKey } from '@airdock/ssh/connection/keys';
import { findProgram, freePort, startJsonServer, tempDir } from '@airdock/testing/servers';
import { type SshServerOptions, startSshServer } from '@airdock/testing/ssh-server';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { inspectHost } from './inspect-host.js';

const seenAt = '2026-01-01T00:00:00.000Z';

async function inspect(options: Partial<SshServerOptions> = {}, port = 5100, asksRegistry = false) {
  await using server = await startSshServer({ user: 'root', password: 'p', ...options });
  const target = {
    address: '127.0.0.1',
    port: server.port,
    username: options.user ?? 'root',
    password: 'p',
    hostKeyFingerprint: parseHostKey(server.hostKey),
  };
  await using connection = await connectSsh(target);
  const inspection = await inspectHost(
    connection,
    { port, ownsPort: asksRegistry, asksRegistry, tries: { ports: [], sockets: false }, seenAt },
    new AbortController().signal,
  );
  const checkOf = (name: string) => inspection.checks.find((check) => check.name === name);
  return { ...inspection, checkOf, where: connection.where };
}
/** The host answers the script with this, and says that it is our time. */
const saying = (text: string) => inspect({ answer: () => `time=${Date.now() / 1000}\n${text}` });

describe('inspectHost', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  beforeAll(async () => {
    folder = await tempDir('inspect');
  });
  afterAll(() => folder?.remove());

  it('sees what this machine is, and the programs on its ports', async () => {
    const port = await freePort();
    const server = createServer((socket) => socket.destroy());
    await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
    const { facts, checks, checkOf, isPortTaken, where } = await inspect({ user: 'admin', sudo: 'free' }, port);
    expect(facts).toMatchObject({ os: expect.stringMatching(/^[a-z]+$/), seenAt });
    expect(Math.min(facts.cpus, facts.memoryBytes, facts.diskFreeBytes)).toBeGreaterThan(0);
    expect(checks.map(({ name }) => name)).toEqual([
      ...[
        'login',
        'sessions',
        'ssh',
        'sudo',
        'os',
        'packages',
        'cpu',
        'memory',
        'disk',
        'disk size',
        'disk space',
        'disk writes',
        'systemd',
        'time',
        'swap',
        `port ${port}`,
      ],
      ...['port holder', 'forwarding', 'ports', 'docker', 'runtimes', 'conflicts', 'firewall', 'cgroup'],
    ]);
    for (const { status, nextStep } of checks) expect(nextStep === null).toBe(status === 'pass');
    expect(checkOf('ssh')?.seen).toContain(where);
    expect(checkOf('sudo')).toMatchObject({ status: 'pass', seen: 'sudo without password' });
    expect(checkOf('time')).toMatchObject({ status: 'pass' });
    expect(isPortTaken).toBe(true);
    expect(checkOf(`port ${port}`)).toMatchObject({ status: 'failure', seen: expect.stringContaining('taken') });
    await new Promise((resolve) => server.close(resolve));
  });

  it('sees the same with busybox', async () => {
    const busybox = findProgram('busybox');
    expect(busybox).toBeDefined();
    const path = join(folder.path, 'busybox');
    execFileSync('mkdir', [path]);
    execFileSync(busybox as string, ['--install', '-s', path]);
    const [here, there] = [await inspect(), await inspect({ path, shell: [join(path, 'sh'), '-c'] })];
    for (const key of ['os', 'osVersion', 'osFamily', 'architecture', 'cpus', 'memoryBytes'] as const)
      expect(there.facts[key]).toEqual(here.facts[key]);
    for (const name of ['disk', 'disk size', 'disk writes', 'time', 'swap', 'cgroup'])
      expect(there.checkOf(name)).toMatchObject({ status: here.checkOf(name)?.status });
  });

  it('lets the host ask the registry where it is told to', async () => {
    await using registry = await startJsonServer({ '/v2/': {} });
    const port = Number(new URL(registry.url).port);
    expect((await inspect({}, port, true)).canReachRegistry).toBe(true);
    expect((await inspect({}, await freePort(), true)).canReachRegistry).toBe(false);
    expect((await inspect({}, port)).canReachRegistry).toBeUndefined();
  });

  it('says what it could not see where a host lacks programs', async () => {
    const path = join(folder.path, 'bare');
    execFileSync('mkdir', [path]);
    await symlink('/bin/sh', join(path, 'sh'));
    const { facts, checkOf } = await inspect({ path, shell: ['/bin/sh', '-c'] });
    expect(facts).toMatchObject({
      architecture: 'unknown',
      cpus: 0,
      memoryBytes: 0,
      packageManager: null,
      dockerVersion: null,
    });
    for (const name of ['cpu', 'memory', 'disk', 'time', 'swap'])
      expect(checkOf(name)).toMatchObject({ status: 'warning', seen: expect.stringContaining('could not be seen') });
  });

  it.each([
    ['', 'warning'],
    ['no time', 'warning'],
    [() => String(Date.now() / 1000 + 20), 'warning'],
    [() => String(Date.now() / 1000 - 120), 'failure'],
    [() => `${Math.floor(Date.now() / 1000)}.%N`, 'pass'],
  ])('compares the clocks: %s is a %s', async (said, status) => {
    const { checkOf } = await inspect({ answer: () => `time=${typeof said === 'string' ? said : said()}` });
    expect(checkOf('time')).toMatchObject({ status });
  });

  it('warns of what is too small for PMK, and of what is in its way', async () => {
    const { facts, checkOf, isPortTaken } = await saying(
      [
        'os=rocky\nosVersion=9.3\nosLike=rhel centos fedora\nmachine=x86_64\npackageManager=dnf\ncpus=1\nmemoryKiB=4000000\nswapKiB=1024\ndiskFreeKiB=3000000',
        'rootKiB=20000000\nrootFreeKiB=0\nsystemd=yes\ncgroup=1\ndocker=20.10.24\ncontainerd=1.6.20\nruntime=containerd 1.6.20\nlistens=01BB\nlistens=280A\nlistens=13EC\nprogram=443 nginx',
        'conflict=kubelet 1.20.11\nconflict=k3s\nfirewall=firewalld\nfirewall=iptables with 3 rules',
      ].join('\n'),
    );
    expect(facts).toMatchObject({
      os: 'rocky',
      osFamily: 'redhat',
      packageManager: 'dnf',
      architecture: 'amd64',
      dockerVersion: '20.10.24',
      containerdVersion: '1.6.20',
    });
    expect(isPortTaken).toBe(true);
    for (const name of ['cpu', 'memory', 'disk size', 'disk space', 'swap', 'ports', 'conflicts', 'firewall'])
      expect(checkOf(name)).toMatchObject({ status: 'warning' });
    for (const name of ['os', 'packages', 'disk', 'systemd', 'docker', 'runtimes', 'cgroup'])
      expect(checkOf(name)).toMatchObject({ status: 'pass' });
    expect(checkOf('ports')?.seen).toBe('taken: 443 by nginx, 10250');
    expect(checkOf('port 5100')).toMatchObject({ status: 'failure', seen: 'taken: 5100' });
    expect(checkOf('conflicts')?.seen).toBe('kubelet 1.20.11, k3s');
    expect(checkOf('runtimes')?.seen).toBe('docker 20.10.24, containerd 1.6.20');
  });

  const able =
    'systemd=yes\nsystemdVersion=252\nproxyd=/usr/lib/systemd/systemd-socket-proxyd\nuserId=1000\nipv6=yes\nallowstreamlocalforwarding=yes\n';

  it('knows a port that the host holds for us from one that somebody took', async () => {
    const held = await saying(`${able}listensOn=5100\nprogram=5100 systemd\nholds=registry 5100`);
    expect(held).toMatchObject({
      isPortTaken: false,
      ports: { holder: { userId: 1000, hasIpv6: true, systemdVersion: 252 }, held: [{ port: 5100 }] },
    });
    expect(held.checkOf('port holder')).toMatchObject({ status: 'pass' });
    for (const stranger of ['', 'holds=registry 5101', 'holds=packages 5100', 'holds=other 5100'])
      expect(await saying(`${able}listensOn=5100\nprogram=5100 perl\n${stranger}`)).toMatchObject({
        isPortTaken: true,
      });
  });

  it.each([
    ['systemd=', 'systemd is not its first process'],
    ['proxyd=/tmp/evil', 'it has no systemd-socket-proxyd'],
    ['userId=root', 'it has no systemd-socket-proxyd'],
    ['allowstreamlocalforwarding=local', 'its sshd does not allow stream local forwarding'],
    ['disableforwarding=yes', 'its sshd does not allow stream local forwarding'],
  ])('warns of what a user of the host can do where it cannot hold ports: %s', async (line, why) => {
    const [key] = line.split('=');
    const { ports, checkOf } = await saying(`${able.replace(new RegExp(`${key}=.*\n`), '')}${line}`);
    expect(ports.holder).toBeUndefined();
    expect(checkOf('port holder')).toMatchObject({
      status: 'warning',
      seen: `${why}: while the tunnel is down any user of the host can answer in its place`,
      nextStep: expect.stringContaining('AllowStreamLocalForwarding yes') as string,
    });
  });

  it('believes nothing that a hostile host says, and keeps little of it', async () => {
    const { facts, checks } = await saying(
      `os=\u001B[31m${'x'.repeat(5000)}\ncpus=-5\nmemoryKiB=1e99\ndiskFreeKiB=99999999999999999\nrootKiB=NaN\n__proto__=x\nconstructor=y\n=z\n${'conflict=kubelet\u0000\n'.repeat(9000)}`,
    );
    expect(facts).toMatchObject({ cpus: 0, memoryBytes: 0, diskFreeBytes: 0 });
    expect(facts.os.length).toBeLessThanOrEqual(100);
    expect(facts.os).not.toContain('\u001B');
    for (const { seen } of checks) expect(seen.length).toBeLessThanOrEqual(1000);
  });
});
