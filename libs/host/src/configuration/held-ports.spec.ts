import type { HostPorts } from '@airdock/core/host/held-port';
import { ownHeader } from '@airdock/core/host/host-file';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import { ConfigurationWork } from './configuration-work.js';
import { HeldPorts, heldPortFiles } from './held-ports.js';

const holder = {
  proxyd: '/usr/lib/systemd/systemd-socket-proxyd',
  systemdVersion: 252,
  hasIpv6: false,
  userId: 1000,
};
const able: HostPorts = { holder, why: '', held: [] };
const tmpfiles = '/etc/tmpfiles.d/airdock.conf';

describe('ports that a host holds', () => {
  let host: ScriptedHost;
  beforeEach(() => {
    host = new ScriptedHost();
  });
  const ports = (seen: HostPorts = able, packagePort: number | null = 5101, dryRun = false) =>
    new HeldPorts(
      new ConfigurationWork({
        connection: host.connection as unknown as SshConnection,
        signal: new AbortController().signal,
        dryRun,
        onStep: () => undefined,
        onWarning: () => undefined,
        site: {
          registry: { port: 5100 },
          naming: ['flat'],
          mirroredUpstreams: [],
          packages: {
            repositories: [],
            install: { debian: [], redhat: [] },
            docker: { debian: [], redhat: [] },
          },
        },
        facts: {
          family: 'debian',
          distribution: 'bookworm',
          docker: { isInstalled: true, version: undefined },
          containerd: { version: undefined },
        },
        wishes: { skipYumRepoInstall: false, skipDockerInstall: false },
        hasTunnel: true,
      }),
      seen,
      { hostPort: 5100, packagePort },
    );
  const held: HostPorts['held'] = [
    { name: 'registry', port: 5100 },
    { name: 'packages', port: 5101 },
  ];

  it('are written, enabled, and listen once whatever held them has let go', async () => {
    const fresh = ports();
    expect(fresh.hostEnd).toBe('socket');
    const changes = await fresh.configure();
    expect([...host.files.keys()].toSorted()).toEqual(heldPortFiles().toSorted());
    expect(changes.filter(({ kind }) => kind === 'service').map(({ target }) => target)).toEqual([
      'airdock-registry.socket',
      'airdock-packages.socket',
    ]);
    expect(host.changes.filter((one) => one.startsWith('units'))).toEqual([
      'units enable airdock-registry.socket airdock-packages.socket',
    ]);
    await fresh.listen();
    expect(host.changes.slice(-2)).toEqual(['units start airdock-registry', 'units start airdock-packages']);
    expect(fresh.isMoved).toBe(false);
  });

  it('are left alone when they are held already', async () => {
    await ports().configure();
    host.changes.length = 0;
    const again = ports({ ...able, held });
    expect(await again.configure()).toEqual([]);
    await again.listen();
    expect(host.changes).toEqual([]);
  });

  it('are started anew when a unit has stopped, or has changed', async () => {
    await ports().configure();
    host.changes.length = 0;
    const stopped = ports({ ...able, held: held.slice(0, 1) });
    expect((await stopped.configure()).map(({ target }) => target)).toEqual(['airdock-packages.socket']);
    await stopped.listen();
    expect(host.changes.at(-1)).toBe('units start airdock-packages');
    const unit = '/etc/systemd/system/airdock-registry.socket';
    host.files.set(unit, `${ownHeader}\nchanged\n`);
    const changes = await ports({ ...able, held }).configure();
    expect(changes.map(({ target }) => target)).toEqual([unit, 'airdock-registry.socket']);
  });

  it('know that another user logs in now', async () => {
    await ports().configure();
    const moved = ports({ holder: { ...holder, userId: 1001 }, why: '', held });
    await moved.configure();
    expect(moved.isMoved).toBe(true);
    expect(host.files.get(tmpfiles)).toContain(' 1001 ');
  });

  it('of packages go when none are served any more', async () => {
    await ports().configure();
    const changes = await ports({ ...able, held }, null).configure();
    expect(changes.map(({ action, target }) => `${action} ${target}`)).toEqual([
      'remove /etc/systemd/system/airdock-packages.socket',
      'remove /etc/systemd/system/airdock-packages.service',
    ]);
    expect(host.files.has(tmpfiles)).toBe(true);
    expect(host.changes).toContain('units disable airdock-packages');
  });

  it('are not held by a host that cannot, and given up by one that no longer can', async () => {
    const unable = { holder: undefined, why: 'it has no systemd-socket-proxyd', held: [] };
    expect(ports(unable).hostEnd).toBe('port');
    expect(await ports(unable).configure()).toEqual([]);
    expect(host.changes).toEqual([]);
    await ports().configure();
    await ports(unable).configure();
    expect([...host.files.keys()]).toEqual([]);
  });

  it('are removed without a file that is of others', async () => {
    await ports().configure();
    const unit = '/etc/systemd/system/airdock-registry.service';
    host.files.set(unit, 'of an administrator\n');
    const changes = await ports().unconfigure();
    expect(changes).toHaveLength(4);
    expect([...host.files.keys()]).toEqual([unit]);
    host.changes.length = 0;
    expect(await ports().unconfigure()).toEqual([]);
    expect(host.changes).toEqual([]);
  });

  it('are only planned in a dry run', async () => {
    const dry = ports(able, 5101, true);
    expect(await dry.configure()).toHaveLength(7);
    await dry.listen();
    expect(host.changes).toEqual([]);
    await ports().configure();
    host.changes.length = 0;
    expect(await ports(able, 5101, true).unconfigure()).toHaveLength(5);
    expect(host.changes).toEqual([]);
  });

  it('are no success when somebody else has one, or a unit listens to the network', async () => {
    host.answer = (change) =>
      change === 'units start airdock-registry' ? { exitCode: 1, stderr: 'Address already in use' } : undefined;
    const taken = ports();
    await taken.configure();
    await expect(taken.listen()).rejects.toMatchObject({
      code: 'host_port_taken',
      details: { port: 5100, detail: expect.stringContaining('Address already in use') as string },
    });
    host.answer = (_, { script }) => (script.includes('case "$users"') ? 'address=0.0.0.0:5100\n' : undefined);
    const exposed = ports();
    await exposed.configure();
    await expect(exposed.listen()).rejects.toMatchObject({ code: 'tunnel_exposed' });
  });
});
