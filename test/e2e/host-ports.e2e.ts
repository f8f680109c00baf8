/**
 * The ports of hosts through which they reach the DU: nobody there but root can answer on them, whatever becomes of the
 * tunnel.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { createSshCredential, patchHost } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { addAptMetadata, makeDeb } from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { hostWorkerOf } from '../support/host-worker.js';
import {
  checkHost,
  configureHost,
  out,
  planOf,
  registerHost,
  stateOf,
  statuses,
  tunnelOf,
  wrongPulls,
} from '../support/hosts.js';
import { endWithLab } from '../support/lab-ends.js';

const images = ['k8s.gcr.io/pause:3.2'];
const adminPassword = 'Sesam, öffne dich';
const started = await startLab();
if (!started.lab) process.stderr.write(`host ports: skipped: ${started.reason}\n`);

/** Every way of listening that a program without rights has. Prints those that the kernel let it have. */
const listenEverywhere = `
use strict; use Socket qw(:all);
my $port = shift;
for my $address ("127.0.0.1", "0.0.0.0", "::1", "::") {
  for my $option (0, SO_REUSEADDR, SO_REUSEPORT) {
    my $is6 = $address =~ /:/;
    socket(my $socket, $is6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0) or next;
    setsockopt($socket, SOL_SOCKET, $option, 1) if $option;
    setsockopt($socket, 0, 15, 1);
    setsockopt($socket, IPPROTO_IPV6, 26, 1) if $is6;
    my $name = $is6 ? pack_sockaddr_in6($port, inet_pton(AF_INET6, $address)) : pack_sockaddr_in($port, inet_aton($address));
    print "$address $option\\n" if bind($socket, $name) && listen($socket, 5);
  }
}`;

describe.skipIf(!started.lab)('the ports of hosts', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let bundleId: string;
  let host: LabHost;
  let hostId: string;
  let untouched: string;

  beforeAll(async () => {
    folder = await tempDir('host-ports');
    const apt = join(folder.path, 'apt');
    await mkdir(apt);
    await makeDeb(apt, 'lab-agent');
    await addAptMetadata(apt);
    const packages = { repositories: [{ name: 'release', format: 'apt', folder: apt }] };
    [du, host] = await Promise.all([
      Du.start({ folder: folder.path, packages }),
      lab.startHost({ name: 'ports', withSystemd: true, adminPassword }),
    ]);
    client = await du.client();
    hostId = await registerHost(client, host, {
      credential: { username: 'admin', password: adminPassword, sudoPassword: adminPassword },
    });
    bundleId = await carryIn(client, du, { images });
    await push(client, bundleId);
    untouched = await stateOf(host);
  });
  endWithLab(lab, () => ({ du, folder }));

  const local = () => `localhost:${du.registryPort}/pause:3.2`;
  const pulls = async (id = hostId) => expect(await wrongPulls(client, du.registryPort, id, [local()])).toEqual([]);
  const isUp = (id = hostId) =>
    waitFor(async () => (await tunnelOf(client, id))?.state === 'up', {
      what: 'the tunnel to be up',
      timeoutMs: 30_000,
      intervalMs: 100,
    });
  /** What the user `guest` of the host comes to listen on. */
  const takenByGuest = (port: number, on = host) =>
    out(on, `cat >/tmp/listen.pl <<'EOF'\n${listenEverywhere}\nEOF\nsu guest -c 'perl /tmp/listen.pl ${port}'`);
  const statusOf = (port: number, path: string, on = host) =>
    out(on, `curl -s -o /dev/null -m 5 -w '%{http_code} %{exitcode}' http://127.0.0.1:${port}${path} || :`);
  /** Which a reboot of the lab's host sets anew. */
  const withoutPassword = (state: string) => state.replaceAll(/.*\/etc\/shadow.*\n/g, '');
  const ports = () => [du.registryPort, du.packagePort];

  it('are planned by a dry run, which changes nothing', async () => {
    const { job, result } = await configureHost(client, hostId, { bundleIds: [bundleId], dryRun: true });
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(planOf(result)).toEqual(
      expect.arrayContaining([
        'file create /etc/tmpfiles.d/airdock.conf',
        'file create /etc/systemd/system/airdock-registry.socket',
        'file create /etc/systemd/system/airdock-registry.service',
        'service restart airdock-packages.socket',
      ]),
    );
    expect(await stateOf(host)).toBe(untouched);
  });

  it('are held by the host itself, and lead through a socket of the tunnel', async () => {
    const { job, result } = await configureHost(client, hostId, { bundleIds: [bundleId] });
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(statuses(result)).toMatchObject({ tunnel: 'done', verify: 'done' });
    expect(await tunnelOf(client, hostId)).toMatchObject({ state: 'up', hostEnd: 'socket' });
    await pulls();
    expect(await statusOf(du.packagePort, '/release/InRelease')).toBe('200 0');
    const again = await configureHost(client, hostId);
    expect(planOf(again.result)).toEqual([]);
    expect(
      (await checkHost(client, hostId)).result?.checks.filter(({ name }) => name.startsWith('port ')),
    ).toMatchObject([{ status: 'pass', seen: 'held by the host for our tunnel' }, { status: 'pass' }]);
  });

  it('cannot be taken by a user of the host while the tunnel is down, and whoever asks is sent away at once', async () => {
    await du.end();
    for (const port of ports()) {
      await waitFor(async () => (await statusOf(port, '/v2/')).startsWith('000'), { what: 'the tunnel to be down' });
      // curl's "empty reply" and "connection reset"; a connection that nobody ends would be its timeout, 28.
      expect(await statusOf(port, '/v2/')).toMatch(/^000 (52|56)$/);
      expect(await takenByGuest(port)).toBe('');
    }
    expect((await host.exec("su guest -c 'ls /run/airdock'")).exitCode).not.toBe(0);
    expect((await host.exec("su guest -c 'mv /run/airdock /run/airdock.old'")).exitCode).not.toBe(0);
  });

  it('stay the host’s own when the service dies as often as somebody likes', async () => {
    const port = du.registryPort;
    for (let count = 0; count < 30; count++) {
      await statusOf(port, '/v2/');
      await host.exec('systemctl kill -s KILL airdock-registry.service');
    }
    expect(await takenByGuest(port)).toBe('');
    expect(await statusOf(port, '/v2/')).toMatch(/^000 (52|56)$/);
  });

  it('are held again after a reboot before anybody logs in, and lead to the DU when that is back', async () => {
    await host.reboot();
    for (const port of ports()) expect(await takenByGuest(port)).toBe('');
    const order = await out(
      host,
      'systemctl show -p Before --value airdock-registry.socket; systemctl show -p After --value systemd-user-sessions.service ssh.service',
    );
    expect(order).toContain('sockets.target');
    await du.startProcess();
    client = await du.client();
    await isUp();
    await pulls();
  });

  it('lead to the DU again after its host worker was killed', async () => {
    process.kill(await hostWorkerOf(du), 'SIGKILL');
    await waitFor(async () => (await statusOf(du.registryPort, '/v2/')) === '200 0', {
      what: 'the registry to answer',
      timeoutMs: 60_000,
      intervalMs: 200,
    });
    await isUp();
    await pulls();
    expect(await out(host, 'ls /run/airdock')).toBe('packages.sock\nregistry.sock');
  });

  it('are found out when somebody gives them up, and put right', async () => {
    await host.exec('systemctl disable --now airdock-registry.socket');
    const { result } = await configureHost(client, hostId, { action: 'reapply', dryRun: true });
    expect(planOf(result)).toContain('service restart airdock-registry.socket');
    expect((await configureHost(client, hostId, { action: 'reapply' })).job).toMatchObject({
      state: 'succeeded',
      error: null,
    });
    await pulls();
    expect(
      await out(host, 'systemctl is-enabled airdock-registry.socket; systemctl is-active airdock-registry.socket'),
    ).toBe('enabled\nactive');
  });

  it('go over to another login user with the next configuration', async () => {
    const { data } = await createSshCredential({
      client,
      body: { name: 'ports-root', username: 'root', privateKey: host.privateKey },
      throwOnError: true,
    });
    await patchHost({ client, path: { id: hostId }, body: { credentialId: data.id }, throwOnError: true });
    const { job, result } = await configureHost(client, hostId);
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(planOf(result)).toContain('file change /etc/tmpfiles.d/airdock.conf');
    expect(await out(host, "stat -c '%U %a %F' /run/airdock /run/airdock/*")).toBe(
      'root 700 directory\nroot 600 socket\nroot 600 socket',
    );
    await pulls();
    for (const port of ports()) expect(await takenByGuest(port)).toBe('');
  });

  it('are free again when the host is unconfigured, and nothing is left', async () => {
    const { job, result } = await configureHost(client, hostId, { action: 'unconfigure' });
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(result.warnings).toEqual([]);
    expect(withoutPassword(await stateOf(host))).toBe(withoutPassword(untouched));
    expect(
      await out(
        host,
        "ls /run/airdock 2>&1 || :; systemctl list-units --all --plain --no-legend 'airdock-*'; find /etc/systemd -name '*airdock*'",
      ),
    ).toBe("ls: cannot access '/run/airdock': No such file or directory");
    for (const port of ports()) expect(await takenByGuest(port)).not.toBe('');
  });

  it('are the tunnel’s only where sshd forbids sockets, which the check says, and the host’s own when that is put right', async () => {
    await host.exec("echo 'AllowStreamLocalForwarding no' >/etc/ssh/sshd_config.d/local.conf && systemctl restart ssh");
    const { job, result } = await configureHost(client, hostId);
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(result.warnings.join()).toContain(
      'does not allow stream local forwarding: while the tunnel is down any user of the host can answer',
    );
    expect(await tunnelOf(client, hostId)).toMatchObject({ state: 'up', hostEnd: 'port' });
    await pulls();
    await host.exec('rm /etc/ssh/sshd_config.d/local.conf && systemctl restart ssh');
    const mended = await configureHost(client, hostId);
    expect(mended.job).toMatchObject({ state: 'succeeded', error: null });
    expect(await tunnelOf(client, hostId)).toMatchObject({ state: 'up', hostEnd: 'socket' });
    await pulls();
    expect(await takenByGuest(du.registryPort)).toBe('');
  });

  it('are the tunnel’s on a host without systemd: while that is down a user can take them', async () => {
    await using plain = await lab.startHost({ name: 'plain' });
    const id = await registerHost(client, plain, { credential: { username: 'admin', privateKey: plain.privateKey } });
    const { job, result } = await configureHost(client, id);
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(result.warnings.join()).toContain(
      'systemd is not its first process: while the tunnel is down any user of the host can answer in its place',
    );
    expect(await tunnelOf(client, id)).toMatchObject({ state: 'up', hostEnd: 'port' });
    await pulls(id);
    expect((await configureHost(client, id, { action: 'unconfigure' })).job).toMatchObject({ state: 'succeeded' });
    expect(await takenByGuest(du.registryPort, plain)).toContain('127.0.0.1 2');
  });
});
