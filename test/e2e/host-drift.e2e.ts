/**
 * Hosts that are no longer as they were configured: found, told, and put right, on real hosts with a real sshd, Docker
 * and containerd.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createHostConfiguration, getHost, getHostConfiguration, listHosts } from '@airdock/clients/generated/sdk.gen';
import type { CreateHostConfiguration } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { addAptMetadata, makeDeb } from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { beforeAll, describe, expect, it } from 'vitest';
import { parse, stringify } from 'yaml';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { out as outOf, registerHost, stateOf as stateOfHost, tunnelOf as tunnelOfHost } from '../support/hosts.js';
import { endOf, resourceId } from '../support/jobs.js';
import { endWithLab } from '../support/lab-ends.js';

const list = '/etc/apt/sources.list.d/airdock.list';
const daemonJson = '/etc/docker/daemon.json';
const hostsToml = '/etc/containerd/certs.d/k8s.gcr.io/hosts.toml';
const started = await startLab();
if (!started.lab) process.stderr.write(`host drift: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('drift of a host', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let printed = '';
  const hosts = {} as Record<'docker' | 'containerd', LabHost>;
  const ids = {} as Record<keyof typeof hosts, string>;

  beforeAll(async () => {
    folder = await tempDir('host-drift');
    const apt = join(folder.path, 'apt');
    await makeDeb(apt, 'lab-agent');
    await addAptMetadata(apt);
    const onOutput = (text: string) => {
      printed += text;
    };
    const packages = { repositories: [{ name: 'release', format: 'apt', folder: apt }] };
    [du, hosts.docker, hosts.containerd] = await Promise.all([
      Du.start({ folder: folder.path, packages, onOutput }),
      lab.startHost({ name: 'docker' }),
      lab.startHost({ name: 'containerd', withContainerd: true }),
    ]);
    client = await du.client();
    for (const [name, host] of Object.entries(hosts))
      ids[name as keyof typeof hosts] = await registerHost(client, host, {
        name,
        credential: { username: 'admin', privateKey: host.privateKey },
      });
    await push(client, await carryIn(client, du, { images: ['k8s.gcr.io/pause:3.2'], layerBytes: 50_000 }));
    await run({ hostIds: Object.values(ids) });
  });
  endWithLab(lab, () => ({ du, folder }));

  async function run(body: Partial<CreateHostConfiguration>) {
    const { data } = await createHostConfiguration({
      client,
      body: body as CreateHostConfiguration,
      throwOnError: true,
    });
    return endOf(client, data.id);
  }
  /** What a look at a host, or a repair, leaves there. */
  async function driftAfter(name: keyof typeof hosts, dryRun: boolean) {
    const job = await run({ action: 'reapply', hostIds: [ids[name]], dryRun });
    const { drift } = (await getHost({ client, path: { id: ids[name] }, throwOnError: true })).data;
    expect(drift?.configurationId).toBe(resourceId(job));
    return {
      job,
      drift,
      plan: (drift?.changes ?? []).map(({ kind, action, target }) => `${kind} ${action} ${target}`),
    };
  }
  const drifted = async () =>
    (await listHosts({ client, query: { drifted: 'true' }, throwOnError: true })).data.items.map(({ name }) => name);
  const tunnelOf = (name: keyof typeof hosts) => tunnelOfHost(client, ids[name]);
  const out = (name: keyof typeof hosts, command: string) => outOf(hosts[name], command);
  const stateOf = (name: keyof typeof hosts) => stateOfHost(hosts[name]);
  /** sshd reads its configuration again, and everybody is thrown out. */
  async function sshd(setting: string): Promise<void> {
    await out('docker', `echo '${setting}' >/etc/ssh/sshd_config.d/test.conf; kill -HUP 1; pkill -P 1 -x sshd || true`);
    await hosts.docker.ready();
  }
  const mirror = () => `http://127.0.0.1:${du.registryPort}`;

  it('is none after it was configured, nor after a look', async () => {
    for (const name of ['docker', 'containerd'] as const) {
      const { data: host } = await getHost({ client, path: { id: ids[name] }, throwOnError: true });
      expect(host.drift).toMatchObject({ changes: [], error: null });
      const before = await stateOf(name);
      expect(await driftAfter(name, true)).toMatchObject({
        job: { state: 'succeeded' },
        plan: [],
        drift: { error: null },
      });
      expect(await stateOf(name)).toBe(before);
    }
    expect(await drifted()).toEqual([]);
  });

  it('is told with what would put it right, and nothing is changed', async () => {
    await out('docker', `sed -i 's/release/elsewhere/' ${list}; echo '{"shutdown-timeout": 17}' >${daemonJson}`);
    await sshd('AllowTcpForwarding no');
    await waitFor(async () => (await tunnelOf('docker'))?.state === 'down', {
      what: 'the tunnel to be down',
      timeoutMs: 60_000,
    });
    const before = await stateOf('docker');
    const { job, drift, plan } = await driftAfter('docker', true);
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(plan).toEqual([
      `tunnel open 127.0.0.1:${du.registryPort}`,
      `file change ${list}`,
      `package refresh http://127.0.0.1:${du.packagePort}/release`,
      `file change ${daemonJson}`,
      'service reload docker',
    ]);
    const diffOf = (path: string) => drift?.changes.find(({ target }) => target === path)?.diff;
    expect(diffOf(list)).toMatch(/^-deb .*elsewhere.*\n\+deb .*release/m);
    expect(diffOf(daemonJson)).toContain(`"registry-mirrors": ["${mirror()}"]`);
    expect(await stateOf('docker')).toBe(before);
    expect(await drifted()).toEqual(['docker']);
    expect(printed).toContain('docker has drifted from its configuration');
  });

  it('is not forgotten while the host cannot be reached', async () => {
    const rule = 'INPUT -p tcp --dport 22 -j REJECT --reject-with tcp-reset';
    await out('docker', `iptables -I ${rule}`);
    const { job, drift, plan } = await driftAfter('docker', true);
    await out('docker', `iptables -D ${rule}`);
    expect(job).toMatchObject({ state: 'failed', error: { code: 'host_unreachable' } });
    expect(drift?.error).toMatchObject({ code: 'host_unreachable', nextStep: expect.any(String) as string });
    expect(plan).toHaveLength(5);
    expect(await drifted()).toEqual(['docker']);
  });

  it('is put right when told to, without a restart of Docker', async () => {
    await sshd('AllowTcpForwarding yes');
    const pid = await out('docker', 'pidof dockerd');
    expect(await driftAfter('docker', false)).toMatchObject({
      job: { state: 'succeeded', error: null },
      plan: [],
      drift: { error: null },
    });
    expect(await out('docker', `cat ${list}`)).toContain('release');
    expect(JSON.parse(await out('docker', `cat ${daemonJson}`))).toEqual({
      'shutdown-timeout': 17,
      'registry-mirrors': [mirror()],
    });
    expect(await out('docker', 'docker info --format "{{json .RegistryConfig.Mirrors}}"')).toContain(mirror());
    expect(await out('docker', 'pidof dockerd')).toBe(pid);
    expect(await tunnelOf('docker')).toMatchObject({ state: 'up', error: null });
    expect(await driftAfter('docker', true)).toMatchObject({ plan: [], drift: { error: null } });
    expect(await drifted()).toEqual([]);
  });

  it('is also a tunnel that is up and leads nowhere on the host', async () => {
    const rule = `OUTPUT -o lo -p tcp --dport ${du.registryPort} -j REJECT --reject-with tcp-reset`;
    await out('docker', `iptables -I ${rule}`);
    const dead = await driftAfter('docker', true);
    await out('docker', `iptables -D ${rule}`);
    expect(await tunnelOf('docker')).toMatchObject({ state: 'up' });
    expect(dead).toMatchObject({ job: { state: 'succeeded' }, plan: [`tunnel open 127.0.0.1:${du.registryPort}`] });
    expect(await driftAfter('docker', true)).toMatchObject({ plan: [] });
  });

  it('is found and put right on a containerd host, without a restart where none is needed', async () => {
    const pid = await out('containerd', 'pidof containerd');
    const before = await stateOf('containerd');
    await out('containerd', `rm ${hostsToml}`);
    expect(await driftAfter('containerd', true)).toMatchObject({ plan: [`file create ${hostsToml}`] });
    expect(await driftAfter('containerd', false)).toMatchObject({ job: { state: 'succeeded' }, plan: [] });
    expect(await stateOf('containerd')).toBe(before);
    await out('containerd', `sed -i '/config_path/d' /etc/containerd/config.toml`);
    expect((await driftAfter('containerd', true)).plan).toEqual([
      'file change /etc/containerd/config.toml',
      'service restart containerd',
    ]);
    expect(await out('containerd', 'pidof containerd')).toBe(pid);
    expect(await driftAfter('containerd', false)).toMatchObject({ job: { state: 'succeeded' }, plan: [] });
    expect(await out('containerd', 'containerd config dump')).toContain('config_path = "/etc/containerd/certs.d"');
    expect(await driftAfter('containerd', true)).toMatchObject({ plan: [] });
  });

  it('is put right by the schedule, with `repair`', async () => {
    await du.end();
    const config = parse(await readFile(du.configFile, 'utf8')) as { airdock: object };
    const hosts = { drift: { everyMinutes: 0.05, repair: true } };
    await writeFile(du.configFile, stringify({ ...config, airdock: { ...config.airdock, hosts } }));
    await out('docker', `echo '{"shutdown-timeout": 18}' >${daemonJson}`);
    const pid = await out('docker', 'pidof dockerd');
    await du.startProcess();
    await waitFor(async () => (await out('docker', `cat ${daemonJson}`)).includes(mirror()), {
      what: 'the file to be put right',
      timeoutMs: 90_000,
    });
    const healed = async () => {
      const { drift } = (await getHost({ client, path: { id: ids.docker }, throwOnError: true })).data;
      if (!drift || drift.error || drift.changes.length > 0) return undefined;
      const { data } = await getHostConfiguration({ client, path: { id: drift.configurationId } });
      return data?.scheduled ? data : undefined;
    };
    const look = await waitFor(healed, { what: 'the host to be as it was configured', timeoutMs: 90_000 });
    expect(look).toMatchObject({ action: 'reapply', dryRun: false });
    expect(await out('docker', 'pidof dockerd')).toBe(pid);
    expect(JSON.parse(await out('docker', `cat ${daemonJson}`))).toEqual({
      'shutdown-timeout': 18,
      'registry-mirrors': [mirror()],
    });
  });
});
