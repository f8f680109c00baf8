/**
 * What breaks while hosts are configured: connections, the DU, the hosts themselves, their disks and their Docker. Real
 * hosts, one for each step.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createHostConfiguration, getJob, retryJob } from '@airdock/clients/generated/sdk.gen';
import type { CreateHostConfiguration, Job } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { addAptMetadata, makeDeb } from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { startSshServer } from '@airdock/testing/ssh-server';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { type HostGate, installGate } from '../support/host-gate.js';
import { hostWorkerOf } from '../support/host-worker.js';
import {
  checkHost,
  configuredHosts,
  configureHost,
  dockerNames,
  localNames,
  out,
  planOf,
  registerHost,
  stateOf,
  statuses,
  tunnelOf,
} from '../support/hosts.js';
import { endOf, success } from '../support/jobs.js';
import { startTcpProxy, type TcpProxy } from '../support/tcp-proxy.js';

/** In their order. Each has a host that can be stopped in it. */
const steps = ['check', 'tunnel', 'repositories', 'runtime', 'images', 'verify'] as const;
type StepName = (typeof steps)[number];
interface Host {
  lab: LabHost;
  id: string;
  /** What connections of the DU go through. */
  proxy: TcpProxy;
  gate: HostGate;
  /** Before Airdock came. */
  untouched: string;
}
const upstream = ['k8s.gcr.io/pause:3.2', 'quay.io/coreos/flannel:v0.14.0'];
const imageBytes = 300_000;
/** With a bandwidth images are streamed into the runtime, not pulled. */
const streamed: Partial<CreateHostConfiguration> = { bandwidth: { perHostBytesPerSecond: 50_000_000 } };
const emptyCache = 'docker image prune --all --force';
const daemonJson = '/etc/docker/daemon.json';
const started = await startLab();
if (!started.lab) process.stderr.write(`host faults: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('while hosts are configured', () => {
  const lab = started.lab as Lab;
  const servers = new AsyncDisposableStack();
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let bundleId: string;
  let largeBundleId: string;
  const hosts = {} as Record<StepName, Host>;
  const all = () => steps.map((step) => hosts[step]);

  beforeAll(async () => {
    folder = await tempDir('host-faults');
    const apt = join(folder.path, 'apt');
    await Promise.all([makeDeb(apt, 'lab-agent', { depends: ['lab-library'] }), makeDeb(apt, 'lab-library')]);
    await addAptMetadata(apt);
    const packages = {
      repositories: [{ name: 'release', format: 'apt', folder: apt }],
      install: { debian: ['lab-agent'] },
    };
    du = await Du.start({ folder: folder.path, packages });
    client = await du.client();
    await Promise.all(steps.map(async (step) => void (hosts[step] = await prepare(step))));
    bundleId = await carryIn(client, du, { images: upstream, layerBytes: imageBytes });
    largeBundleId = await carryIn(client, du, { name: 'large', images: ['quay.io/large:v1'], layerBytes: 40_000_000 });
    await push(client, bundleId);
  });
  afterEach(async ({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
    for (const { gate, proxy } of all()) {
      proxy.mend();
      await gate.open();
    }
  });
  afterAll(async () => {
    await du?.stop();
    await servers.disposeAsync();
    await lab.stop();
    await folder?.remove();
  });

  /** A host with a gate in its step; that of the tunnel is the proxy. */
  async function prepare(step: StepName): Promise<Host> {
    const host = await lab.startHost({ name: step });
    const proxy = servers.use(await startTcpProxy(host));
    const gates: Record<StepName, () => Promise<HostGate>> = {
      check: () => installGate(host, '/usr/bin/df', '*'),
      // The first connection is that of the job, the second one that of the tunnel.
      tunnel: async () => ({
        shut: async () => proxy.hold(1),
        reached: async () =>
          void (await waitFor(() => proxy.held() > 0, { what: 'the connection of the tunnel', timeoutMs: 60_000 })),
        open: async () => undefined,
      }),
      // apt has its locks by then.
      repositories: () => installGate(host, '/usr/bin/dpkg', '*--unpack*'),
      // The new file is written, and has not the name of the old one yet.
      runtime: () => installGate(host, '/usr/bin/sync', '*/daemon.json.airdock-new.*'),
      images: () => installGate(host, '/usr/bin/docker', 'load*', { midway: true }),
      // Images that are brought are pulled by tag.
      verify: () => installGate(host, '/usr/bin/docker', 'pull*@sha256:*'),
    };
    const gate = await gates[step]();
    const credential = { username: 'admin', privateKey: host.privateKey };
    const id = await registerHost(client, host, { name: step, address: '127.0.0.1', port: proxy.port, credential });
    return { lab: host, id, proxy, gate, untouched: await stateOf(host) };
  }

  const configure = (host: Host, options: Partial<CreateHostConfiguration> = {}) =>
    configureHost(client, host.id, { bundleIds: [bundleId], ...options });
  const start = async (some: readonly StepName[], options: Partial<CreateHostConfiguration> = {}) => {
    const body = { hostIds: some.map((step) => hosts[step].id), bundleIds: [bundleId], ...options };
    return (await createHostConfiguration({ client, body, throwOnError: true })).data;
  };
  const retry = (job: Job) => retryJob({ client, path: { id: job.id }, throwOnError: true });
  const local = (...more: string[]) => localNames(du.registryPort, [...upstream, ...more]);

  /**
   * For each host a configuration of its own that has come to the host's step and no further, in the order of the
   * steps.
   */
  async function stoppedEverywhere(): Promise<Job[]> {
    for (const { gate, lab: host } of all()) {
      await out(host, ': >/var/log/dpkg.log');
      await gate.shut();
    }
    const jobs = new Map<StepName, Job>();
    // The DU waits ten seconds for the answer that the tunnel does not get: that one comes last.
    for (const some of [steps.filter((step) => step !== 'tunnel'), ['tunnel'] as const]) {
      for (const step of some) jobs.set(step, await start([step], step === 'images' ? streamed : {}));
      await Promise.all(some.map((step) => hosts[step].gate.reached()));
    }
    return steps.map((step) => jobs.get(step) as Job);
  }

  /**
   * What a program was at when the connection went goes on, or notices: whatever it is, it ends. That of the package
   * manager is left for later.
   */
  async function openGates(): Promise<void> {
    for (const [step, { gate, proxy }] of Object.entries(hosts)) {
      proxy.mend();
      if (step !== 'repositories') await gate.open();
    }
  }

  /** The package manager of the first run holds its locks until the one of the second has come. */
  async function letPackagesMeet(): Promise<void> {
    const { lab: host, gate } = hosts.repositories;
    const waiting = `for pid in $(pgrep -x sleep); do ps -ww -o args= -p $(ps -o ppid= -p $pid); done | grep -c lock-frontend || true`;
    await waitFor(async () => Number(await out(host, waiting)) > 0, {
      what: 'a second one that waits',
      timeoutMs: 90_000,
      intervalMs: 200,
    });
    await gate.open();
  }

  /** Every host is as if nothing had happened, and a further run finds nothing to do. */
  async function isWhole(): Promise<void> {
    for (const { lab: host, id } of all()) {
      expect(await dockerNames(host)).toEqual(local());
      expect(JSON.parse(await out(host, `cat ${daemonJson}`))).toEqual({
        'registry-mirrors': [`http://127.0.0.1:${du.registryPort}`],
      });
      expect(
        await out(
          host,
          "find /etc -name '*.airdock-new*' -o -name '*.airdock-pending'; grep -c ' install lab-' /var/log/dpkg.log",
        ),
      ).toBe('2');
      expect(await tunnelOf(client, id)).toMatchObject({ state: 'up', error: null });
    }
    const again = await success(client, await start(steps));
    const unchanged = {
      check: 'done',
      tunnel: 'unchanged',
      repositories: 'unchanged',
      runtime: 'unchanged',
      images: 'unchanged',
      verify: 'done',
    };
    expect((await configuredHosts(client, again)).map(statuses)).toEqual(steps.map(() => unchanged));
  }

  /** Nothing that was brought before the fault has been forgotten. */
  async function unconfigureAll(): Promise<void> {
    const job = await success(client, await start(steps, { action: 'unconfigure', bundleIds: [] }));
    expect((await configuredHosts(client, job)).flatMap(({ warnings }) => warnings)).toEqual([]);
    for (const { lab: host, untouched } of all()) {
      expect(await stateOf(host)).toBe(untouched);
      expect(await out(host, 'docker image ls --all --quiet')).toBe('');
    }
  }

  it('a connection that is cut is told with what was done before; a retry goes on from there', async () => {
    const jobs = await stoppedEverywhere();
    for (const { proxy } of all()) proxy.cut();
    for (const [index, { id }] of jobs.entries()) {
      const job = await endOf(client, id);
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'host_unreachable', nextStep: expect.stringContaining('ssh') as string },
      });
      const [result] = await configuredHosts(client, job);
      expect(result).toMatchObject({
        state: 'failed',
        error: { code: 'host_unreachable', nextStep: expect.any(String) as string },
      });
      expect(result?.steps.map(({ name, status }) => `${name} ${status}`)).toEqual(
        steps.slice(0, index).map((name) => `${name} done`),
      );
    }
    await openGates();
    const { lab: host } = hosts.images;
    await waitFor(async () => (await out(host, 'pgrep -cx docker.real || true')) === '0', {
      what: 'the end of the import',
      timeoutMs: 60_000,
    });
    expect(await out(host, 'docker image ls --all --quiet; ls /var/lib/docker/tmp')).toBe('');
    for (const job of jobs) await retry(job);
    await letPackagesMeet();
    for (const job of jobs) await success(client, job);
    await isWhole();
    await unconfigureAll();
  });

  it('a DU that is killed goes on in its next life, and does nothing twice', async () => {
    const jobs = await stoppedEverywhere();
    await du.end('SIGKILL');
    await openGates();
    await du.startProcess();
    await letPackagesMeet();
    for (const job of jobs) {
      await success(client, job);
      const [host] = await configuredHosts(client, job);
      expect(
        (await getJob({ client, path: { id: host?.jobId ?? '' }, throwOnError: true })).data.attempt,
      ).toBeGreaterThan(1);
    }
    await isWhole();
    await unconfigureAll();
  });

  it('a host that loses its power in the middle of an import, or of a file, is completed by a retry', async () => {
    const cut = [hosts.images, hosts.runtime];
    for (const { gate } of cut) await gate.shut();
    const job = await start(['images', 'runtime'], streamed);
    await Promise.all(cut.map(({ gate }) => gate.reached()));
    // One after the other: at the same time they could get each other's address.
    for (const { lab: host } of cut) await host.reboot();
    expect(await endOf(client, job.id)).toMatchObject({
      state: 'failed',
      error: { code: 'host_unreachable', failed: 2 },
    });
    expect(await out(hosts.images.lab, 'docker image ls --all --quiet')).toBe('');
    expect(await out(hosts.runtime.lab, `cat ${daemonJson} 2>/dev/null || true`)).toBe('');
    await retry(job);
    await success(client, job);
    for (const { lab: host } of cut) {
      expect(await dockerNames(host)).toEqual(local());
      expect(await out(host, "find /etc -name '*.airdock-new*' -o -name '*.airdock-pending'")).toBe('');
    }
  });

  it('a Docker that is stopped is started, and one that cannot be is named', async () => {
    const { lab: host } = hosts.check;
    await out(host, 'service docker stop');
    const brought = await configure(hosts.check, { skipDockerInstall: true });
    expect(brought.job).toMatchObject({
      state: 'failed',
      error: { code: 'host_runtime_missing', nextStep: expect.stringContaining('docker info') as string },
    });
    await out(
      host,
      "mv /usr/sbin/dockerd /usr/sbin/dockerd.real; printf '#!/bin/sh\\necho broken by the test; exit 1\\n' >/usr/sbin/dockerd; chmod 755 /usr/sbin/dockerd",
    );
    const broken = await configure(hosts.check);
    expect(broken.job).toMatchObject({ state: 'failed', error: { code: 'host_runtime_missing' } });
    expect(broken.result.error?.detail).toMatch(/docker does not start: .*broken by the test/);
    expect(statuses(broken.result)).toEqual({ check: 'done', tunnel: 'unchanged', repositories: 'unchanged' });
    await out(host, 'mv /usr/sbin/dockerd.real /usr/sbin/dockerd');
    const { job, result } = await configure(hosts.check);
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(planOf(result)).toContain('service start docker');
    expect(await dockerNames(host)).toEqual(local());
  });

  it('a disk that is full is named, what was there stays usable, and a retry completes when there is space', async () => {
    const host = hosts.verify;
    await out(host.lab, 'service docker stop; mount -t tmpfs -o size=32m tmpfs /var/lib/docker; service docker start');
    expect((await configure(host)).job).toMatchObject({ state: 'succeeded', error: null });
    const { job, result } = await configure(host, { bundleIds: [largeBundleId] });
    expect(job).toMatchObject({
      state: 'failed',
      error: { code: 'host_disk_full', nextStep: expect.stringContaining('df -h') as string },
    });
    expect(result.error?.detail).toContain('no space left on device');
    expect(await dockerNames(host.lab)).toEqual(local());
    for (const name of local()) await out(host.lab, `docker save ${name} | tar -t | grep -q manifest.json`);
    await out(host.lab, 'mount -o remount,size=300m /var/lib/docker');
    await retry(job);
    await success(client, job);
    expect(await dockerNames(host.lab)).toEqual(local('quay.io/large:v1'));
  });

  it('hosts that hang are given up: before the first word, at the first command, and in the middle of an import', async () => {
    await using server = await startSshServer({
      user: 'root',
      password: 'sesame',
      shell: ['sh', '-c', 'exec sleep 600'],
    });
    const address = { address: '127.0.0.1', port: server.port, hostKey: server.hostKey };
    const silent = registerHost(client, hosts.check.lab, {
      ...address,
      name: 'silent',
      credential: { password: 'sesame' },
    }).then((id) => checkHost(client, id));
    hosts.tunnel.proxy.hold(0);
    await hosts.images.gate.shut();
    await out(hosts.images.lab, emptyCache);
    const job = await start(['tunnel', 'images'], streamed);
    await hosts.images.gate.reached();
    hosts.images.proxy.freeze();
    // Nobody else waits for them.
    expect((await configure(hosts.runtime)).job).toMatchObject({ state: 'succeeded', error: null });
    expect((await getJob({ client, path: { id: job.id }, throwOnError: true })).data.finishedAt).toBeNull();
    expect(await endOf(client, job.id)).toMatchObject({
      state: 'failed',
      error: { code: 'host_timeout', nextStep: expect.stringContaining('network') as string },
    });
    for (const { proxy } of [hosts.tunnel, hosts.images]) proxy.mend();
    const [mute, frozen] = await configuredHosts(client, job);
    expect(mute).toMatchObject({
      steps: [],
      error: { code: 'host_timeout', detail: expect.stringContaining('did not answer within') as string },
    });
    expect(frozen).toMatchObject({ error: { code: 'host_unreachable' } });
    expect(Object.keys(statuses(frozen as typeof frozen & {}))).toEqual(['check', 'tunnel', 'repositories', 'runtime']);
    const { job: checked, result } = await silent;
    expect(checked).toMatchObject({
      state: 'failed',
      error: { code: 'host_timeout', nextStep: expect.stringContaining('load of the host') as string },
    });
    expect(result?.error?.detail).toContain('did nothing for 30 s');
    await hosts.images.gate.open();
    await retry(job);
    await success(client, job);
    expect(await dockerNames(hosts.images.lab)).toEqual(local());
  });

  it('a host that is slow slows nobody else', async () => {
    const { proxy, lab: slow } = hosts.images;
    // Minutes for what others get in a second.
    proxy.slow(200_000);
    const job = await start(['images'], { bundleIds: [largeBundleId] });
    const moving = async () => Number(await out(slow, 'du -sb /var/lib/docker/tmp | cut -f1')) > 1_000_000;
    await waitFor(moving, { what: 'the import on the slow host', timeoutMs: 60_000, intervalMs: 500 });
    await out(hosts.runtime.lab, emptyCache);
    expect((await configure(hosts.runtime, { bundleIds: [largeBundleId] })).job).toMatchObject({
      state: 'succeeded',
      error: null,
    });
    expect((await checkHost(client, hosts.runtime.id, local().slice(0, 1))).job).toMatchObject({
      state: 'succeeded',
      error: null,
    });
    expect((await getJob({ client, path: { id: job.id }, throwOnError: true })).data.finishedAt).toBeNull();
    proxy.mend();
    await success(client, job);
    expect(await dockerNames(slow)).toContain(`localhost:${du.registryPort}/large:v1`);
  });

  it('a tunnel whose connection died without a word takes its port back', async () => {
    const { proxy, id } = hosts.runtime;
    expect((await configure(hosts.runtime)).job).toMatchObject({ state: 'succeeded', error: null });
    const before = (await tunnelOf(client, id))?.reconnects ?? 0;
    proxy.freeze();
    const isBack = async () => {
      const tunnel = await tunnelOf(client, id);
      return tunnel?.state === 'up' && tunnel.reconnects > before;
    };
    await waitFor(isBack, { what: 'the tunnel to be back', timeoutMs: 60_000, intervalMs: 500 });
    const { job } = await checkHost(client, id, local().slice(0, 1));
    expect(job).toMatchObject({ state: 'succeeded', error: null });
  });

  it('a host that prints 400 MB at every command is named, and costs no memory', async () => {
    const host = hosts.check;
    await out(host.lab, "cp /home/admin/.bashrc /root/; sed -i '1i head -c 400000000 /dev/zero' /home/admin/.bashrc");
    const pid = await hostWorkerOf(du);
    const memory = async (field: string) =>
      Number(new RegExp(`^${field}:\\s*(\\d+) kB`, 'm').exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]) *
      1024;
    // proc(5): the peak begins anew.
    await writeFile(`/proc/${pid}/clear_refs`, '5');
    const before = await memory('VmRSS');
    const { job, result } = await configure(host);
    expect(job).toMatchObject({
      state: 'failed',
      error: { code: 'host_output_exceeded', nextStep: expect.any(String) as string },
    });
    expect(result.error?.detail).toContain('does the login shell print them');
    expect((await memory('VmHWM')) - before).toBeLessThan(100_000_000);
    await out(host.lab, 'cp /root/.bashrc /home/admin/');
    expect((await configure(host)).job).toMatchObject({ state: 'succeeded', error: null });
  });

  it('image data keeps to the bandwidth, of a host and of all together', async () => {
    const bytes = upstream.length * imageBytes;
    const secondsOf = async (some: StepName[], bandwidth: CreateHostConfiguration['bandwidth']) => {
      for (const step of some) await out(hosts[step].lab, emptyCache);
      const job = await success(client, await start(some, { bandwidth }));
      for (const result of await configuredHosts(client, job))
        expect(statuses(result)).toMatchObject({ images: 'done' });
      return (Date.parse(job.finishedAt ?? '') - Date.parse(job.startedAt ?? '')) / 1000;
    };
    // What a tenth of a second allows may pass at once.
    expect(await secondsOf(['images'], { perHostBytesPerSecond: 200_000 })).toBeGreaterThan(bytes / 200_000 - 0.1);
    expect(await secondsOf(['images', 'runtime'], { totalBytesPerSecond: 400_000 })).toBeGreaterThan(
      (2 * bytes) / 400_000 - 0.1,
    );
  });
});
