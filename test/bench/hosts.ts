/**
 * What hosts get, in the lab: an image pulled through our tunnel beside the same pull through `ssh -R`, caches warmed
 * beside `scp` and `docker load`, eight hosts at once, 500 simulated ones, 200 idle tunnels. `node
 * test/dist/bench/hosts.js [--rounds N] [--only NAME]`; rows of five rounds or more go into docs/benchmarks.md.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import {
  createHostConfiguration,
  createPush,
  deleteHost,
  getHostConfiguration,
  getJob,
  listTunnels,
} from '@airdock/clients/generated/sdk.gen';
import type { CreateHostConfiguration } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { labCacheDir } from '@airdock/testing/lab/engine';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { freePort, tempDir, waitFor } from '@airdock/testing/servers';
import { register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { hostWorkerOf } from '../support/host-worker.js';
import { registerHost } from '../support/hosts.js';
import { resourceId, success } from '../support/jobs.js';
import { registerSimulatedHosts, startSimulatedHosts } from '../support/simulated-hosts.js';
import { type BenchBundle, dockerArchive, ociLayout } from './bundles.js';
import { forgetPeak, median, memoryOf, option, publish, rounds } from './report.js';

const run = promisify(execFile);
const only = option('--only');
const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;
const ratio = (value: number, ours: number) => `${(value / ours).toFixed(value / ours < 10 ? 2 : 0)}×`;

interface Site {
  lab: Lab;
  du: Du;
  client: Client;
  folder: string;
  bundles: string;
}

/** One way to the host's sshd: a direct one, or one that takes time. */
interface Link extends AsyncDisposable {
  address: string;
  port: number;
}

/** As a switch does, a line keeps no more than this waiting for its turn. */
const maxQueueMs = 10;

/**
 * A proxy that hands every byte on later, and not more of them than a line carries. As a long line does, it keeps what
 * is on its way.
 */
async function slowLink(host: LabHost, { roundTripMs = 0, bytesPerSecond = Number.POSITIVE_INFINITY }): Promise<Link> {
  const sockets = new Set<Socket>();
  const later = (from: Socket, to: Socket, line: { busyUntil: number }) => {
    const waiting: { chunk: Buffer; at: number }[] = [];
    const handOn = () => {
      for (let first = waiting[0]; first && first.at <= performance.now(); first = waiting[0]) {
        if (to.writable) to.write(first.chunk);
        waiting.shift();
      }
      if (waiting[0]) setTimeout(handOn, Math.max(0, waiting[0].at - performance.now()));
      else if (from.closed) to.destroy();
    };
    from.on('data', (chunk: Buffer) => {
      line.busyUntil = Math.max(line.busyUntil, performance.now()) + (chunk.byteLength / bytesPerSecond) * 1000;
      const queueMs = line.busyUntil - performance.now();
      if (waiting.push({ chunk, at: line.busyUntil + roundTripMs / 2 }) === 1)
        setTimeout(handOn, Math.max(0, queueMs) + roundTripMs / 2);
      if (queueMs < maxQueueMs) return;
      from.pause();
      setTimeout(() => from.resume(), queueMs - maxQueueMs / 2);
    });
    from.once('close', () => waiting.length === 0 && to.destroy());
    from.on('error', () => undefined);
    sockets.add(from);
    from.once('close', () => sockets.delete(from));
  };
  // All connections share the line, which carries as much in both directions.
  const [there, back] = [{ busyUntil: 0 }, { busyUntil: 0 }];
  const server = createServer({ noDelay: true }, (incoming) => {
    const outgoing = connect({ host: host.address, port: host.port, noDelay: true });
    later(incoming, outgoing, there);
    later(outgoing, incoming, back);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const stop = async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  };
  return { address: '127.0.0.1', port: (server.address() as AddressInfo).port, [Symbol.asyncDispose]: stop };
}

const directLink = ({ address, port }: LabHost): Link => ({
  address,
  port,
  [Symbol.asyncDispose]: async () => undefined,
});

/** OpenSSH with its fastest cipher here, on what the lab's key opens. */
async function sshArguments(
  folder: string,
  { hostKey, privateKey }: LabHost,
  { address, port }: Link,
): Promise<string[]> {
  const [key, known] = [join(folder, 'key'), join(folder, `known-${address}-${port}`)];
  await writeFile(key, privateKey, { mode: 0o600 });
  await writeFile(known, `[${address}]:${port} ${hostKey}\n${address} ${hostKey}\n`);
  const options = {
    IdentityFile: key,
    UserKnownHostsFile: known,
    Port: port,
    Ciphers: 'aes128-gcm@openssh.com',
    LogLevel: 'ERROR',
    ExitOnForwardFailure: 'yes',
  };
  return ['-F', 'none', ...Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`])];
}

/** Returns the id of the bundle. */
async function pushed({ client }: Site, { path }: BenchBundle): Promise<string> {
  const bundleId = await register(client, path);
  await success(client, createPush({ client, body: { bundleId }, throwOnError: true }));
  return bundleId;
}

const configure = (client: Client, body: CreateHostConfiguration) =>
  success(client, createHostConfiguration({ client, body, throwOnError: true }));

/** Milliseconds of a pull by the host's Docker, which has nothing of the image before and after. */
async function pull(host: LabHost, reference: string): Promise<number> {
  const started = performance.now();
  const { exitCode, stderr } = await host.exec(`docker pull --quiet ${reference}`, { timeoutMs: 600_000 });
  const elapsed = performance.now() - started;
  if (exitCode !== 0) throw new Error(`${reference}: ${stderr}`);
  await host.exec(`docker image rm --force ${reference}`);
  return elapsed;
}

/** Alternates the ways, and answers the median of each, in milliseconds. */
async function alternate<Name extends string>(
  row: string,
  ways: Record<Name, () => Promise<number>>,
): Promise<Record<Name, number>> {
  const times = Object.fromEntries(Object.keys(ways).map((name) => [name, [] as number[]])) as Record<Name, number[]>;
  for (let round = 0; round < rounds; round++)
    for (const name of Object.keys(ways) as Name[]) {
      const elapsed = await ways[name]();
      times[name].push(elapsed);
      process.stderr.write(`${row}, round ${round + 1}: ${name} ${seconds(elapsed)}\n`);
    }
  return Object.fromEntries((Object.keys(ways) as Name[]).map((name) => [name, median(times[name])])) as Record<
    Name,
    number
  >;
}

async function isForwarded(host: LabHost, port: number): Promise<boolean> {
  return (await host.exec(`curl -sf http://127.0.0.1:${port}/v2/`)).exitCode === 0;
}

async function benchPull(row: string, site: Site, roundTripMs: number): Promise<void> {
  const { client, du, folder } = site;
  await using host = await site.lab.startHost();
  await using link = roundTripMs > 0 ? await slowLink(host, { roundTripMs }) : directLink(host);
  const image = await ociLayout(site.bundles, {
    images: 1,
    sharedBytes: [100_000_000, 100_000_000],
    ownBytes: 100_000_000,
  });
  await pushed(site, image);
  const hostId = await registerHost(client, host, { address: link.address, port: link.port });
  await configure(client, { hostIds: [hostId], skipDockerImgImport: true });
  const port = await freePort();
  const forward = ['-N', '-R', `127.0.0.1:${port}:${du.dataDir}/run/registry/read-only.sock`];
  const ssh: ChildProcess = spawn(
    'ssh',
    [...(await sshArguments(folder, host, link)), ...forward, `root@${link.address}`],
    {
      stdio: ['ignore', 'inherit', 'inherit'],
    },
  );
  try {
    await waitFor(() => isForwarded(host, port), { what: 'ssh -R', timeoutMs: 30_000 });
    const name = (image.images[0] as string).slice('quay.io/'.length);
    const medians = await alternate(row, {
      Airdock: () => pull(host, `localhost:${du.registryPort}/${name}`),
      'ssh -R': () => pull(host, `localhost:${port}/${name}`),
    });
    await publish([
      row,
      seconds(medians.Airdock),
      `${seconds(medians['ssh -R'])} (${ratio(medians['ssh -R'], medians.Airdock)})`,
    ]);
  } finally {
    ssh.kill();
    await deleteHost({ client, path: { id: hostId }, throwOnError: true });
  }
}

async function benchWarm(site: Site, bundle: BenchBundle, bytesPerSecond?: number): Promise<void> {
  const { client, folder } = site;
  await using host = await site.lab.startHost();
  await using link = bytesPerSecond ? await slowLink(host, { bytesPerSecond }) : directLink(host);
  const bundleId = await pushed(site, bundle);
  const hostId = await registerHost(client, host, { address: link.address, port: link.port });
  const ssh = await sshArguments(folder, host, link);
  const clean = () => host.exec('docker image prune --all --force', { timeoutMs: 300_000 });
  let imageTimes: number[] = [];
  const airdock = async () => {
    const started = performance.now();
    const job = await configure(client, { hostIds: [hostId], bundleIds: [bundleId] });
    const elapsed = performance.now() - started;
    const { data } = await getHostConfiguration({ client, path: { id: resourceId(job) }, throwOnError: true });
    imageTimes.push(data.hosts[0]?.steps.find(({ name }) => name === 'images')?.durationMs ?? Number.NaN);
    return elapsed;
  };
  const scp = async () => {
    const started = performance.now();
    await run('scp', ['-q', ...ssh, bundle.path, `root@${link.address}:/tmp/bundle.tar`]);
    await run(
      'ssh',
      [...ssh, `root@${link.address}`, 'docker load --quiet --input /tmp/bundle.tar && rm /tmp/bundle.tar'],
      { maxBuffer: 1 << 24 },
    );
    return performance.now() - started;
  };
  const from = (way: () => Promise<number>, prepare: () => Promise<unknown>) => async () => {
    await prepare();
    return way();
  };
  const rows: Record<string, () => Promise<unknown>> = bytesPerSecond
    ? { 'Six images, over 1 Gbit/s': clean }
    : { 'Six images to a host that has none': clean, 'The same once more': async () => undefined };
  for (const [row, prepare] of Object.entries(rows)) {
    imageTimes = [];
    const { Airdock: whole, scp: theirs } = await alternate(row, {
      Airdock: from(airdock, prepare),
      scp: from(scp, prepare),
    });
    const images = median(imageTimes);
    await publish([
      row,
      `${seconds(whole)}, its step images ${seconds(images)}`,
      `${seconds(theirs)} (${ratio(theirs, whole)}; of the step ${ratio(theirs, images)})`,
    ]);
  }
  await deleteHost({ client, path: { id: hostId }, throwOnError: true });
}

/** The DU, and the process of it that speaks to hosts. */
const processesOf = async (du: Du): Promise<number[]> => [du.pid as number, await hostWorkerOf(du)];
const sumOfMemory = async (pids: readonly number[], what: 'VmRSS' | 'VmHWM'): Promise<number> =>
  (await Promise.all(pids.map((pid) => memoryOf(pid, what)))).reduce((sum, value) => sum + value, 0);
const megabytes = (value: number): string => `${Math.round(value)} MB`;

async function benchEight(site: Site, bundle: BenchBundle): Promise<void> {
  const { client, du } = site;
  const hosts = await Promise.all(Array.from({ length: 8 }, () => site.lab.startHost()));
  const bundleId = await pushed(site, bundle);
  const ids: string[] = [];
  for (const host of hosts) ids.push(await registerHost(client, host));
  const [first = '', ...others] = ids;
  const one: number[] = [];
  for (let round = 0; round < rounds; round++) {
    await hosts[0]?.exec('docker image prune --all --force', { timeoutMs: 300_000 });
    const started = performance.now();
    await configure(client, { hostIds: [first], bundleIds: [bundleId] });
    one.push(performance.now() - started);
  }
  const all: number[] = [];
  let peak = 0;
  for (let round = 0; round < rounds; round++) {
    await Promise.all(hosts.map((host) => host.exec('docker image prune --all --force', { timeoutMs: 300_000 })));
    const processes = await processesOf(du);
    await Promise.all(processes.map(forgetPeak));
    const started = performance.now();
    await configure(client, {
      hostIds: [first, ...others],
      bundleIds: [bundleId],
      rollout: { atOnce: 8, canary: 0, maxFailureShare: 0 },
    });
    all.push(performance.now() - started);
    peak = Math.max(peak, await sumOfMemory(processes, 'VmHWM'));
    process.stderr.write(
      `eight hosts, round ${round + 1}: ${seconds(all.at(-1) ?? 0)}, one ${seconds(one[round] ?? 0)}, memory ${megabytes(peak)}\n`,
    );
  }
  const [alone, together] = [median(one), median(all)];
  await publish([
    'Eight hosts at once',
    seconds(together),
    `${seconds(alone * 8)} one after the other (${ratio(together, alone * 8)})`,
    megabytes(peak),
  ]);
  for (const id of ids) await deleteHost({ client, path: { id }, throwOnError: true });
  await Promise.all(hosts.map((host) => host.stop()));
}

/** Hosts that answer at once: what is left is Airdock's own work. Then their tunnels, which nobody uses. */
async function benchMany({ folder }: Site, hosts: number, atOnce: number): Promise<void> {
  await using du = await Du.start({ folder: join(folder, `many-${hosts}`), stopsRegistry: true });
  const client = await du.client();
  await using server = await startSimulatedHosts();
  const ids = await registerSimulatedHosts(client, server, hosts);
  await delay(5_000);
  const before = await sumOfMemory(await processesOf(du), 'VmRSS');
  const job = await configure(client, {
    hostIds: ids,
    skipDockerInstall: true,
    rollout: { atOnce, canary: 0, maxFailureShare: 0 },
  });
  const { data: configuration } = await getHostConfiguration({
    client,
    path: { id: resourceId(job) },
    throwOnError: true,
  });
  const wall = Date.parse(job.finishedAt ?? '') - Date.parse(job.startedAt ?? '');
  let busy = 0;
  for (const { jobId } of configuration.hosts) {
    const { data: child } = await getJob({ client, path: { id: jobId ?? '' }, throwOnError: true });
    busy += Date.parse(child.finishedAt ?? '') - Date.parse(child.startedAt ?? '');
  }
  const { data: tunnels } = await listTunnels({ client, query: { limit: 500 }, throwOnError: true });
  const up = tunnels.items.filter(({ state }) => state === 'up').length;
  await delay(60_000);
  const after = await sumOfMemory(await processesOf(du), 'VmRSS');
  await publish([
    `${hosts} simulated hosts, ${atOnce} at once`,
    seconds(wall),
    `${(wall / hosts).toFixed(1)} ms`,
    `${((wall * atOnce - busy) / hosts).toFixed(1)} ms`,
    `${up} tunnels up: ${megabytes(before)}, then ${megabytes(after)}`,
  ]);
}

async function main(): Promise<void> {
  const bundles = join(labCacheDir(), '../bench-bundles');
  await mkdir(bundles, { recursive: true });
  await using folder = await tempDir('bench');
  const { lab, reason } = (await startLab()) as { lab?: Lab; reason?: string };
  if (!lab) throw new Error(reason);
  await using _lab = lab;
  await using du = await Du.start({ folder: join(folder.path, 'du'), bundleDir: bundles, stopsRegistry: true });
  const site: Site = { lab, du, client: await du.client(), folder: folder.path, bundles };
  const saved = await dockerArchive(bundles);
  // What configurations try the way with: else that would be what is measured.
  await pushed(site, await ociLayout(bundles, { images: 2, sharedBytes: [20_000], ownBytes: 1_000 }));
  const benches: Record<string, () => Promise<void>> = {
    pull: () => benchPull('A 300 MB image pulled', site, 0),
    'pull-50ms': () => benchPull('The same, 50 ms away', site, 50),
    warm: () => benchWarm(site, saved),
    'warm-gigabit': () => benchWarm(site, saved, 117_000_000),
    eight: () => benchEight(site, saved),
    tunnels: () => benchMany(site, 200, 8),
    many: () => benchMany(site, 500, 8),
  };
  for (const [name, bench] of Object.entries(benches)) if (!only || only === name) await bench();
}

await main();
process.exit(0);
