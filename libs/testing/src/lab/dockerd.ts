/** An engine of the lab's own. Its images stay between runs; everything else goes with it. */
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import Docker from 'dockerode';
import { findProgram, ServerProcess, waitFor } from '../servers.js';
import { killAbandoned } from './clean-up.js';
import type { Log } from './owner.js';
import { tryLock } from './owner.js';

const run = promisify(execFile);
const slots = [0, 1, 2, 3, 4, 5];

/** A `dockerd` that this process started. */
export interface Dockerd {
  docker: Docker;
  socketPath: string;
  stop(): Promise<void>;
}

/**
 * Starts `dockerd` in the first slot that no other process uses. A slot has a data root, a bridge with a subnet, and a
 * folder in /run. The bridge is ours, and the engine sets no packet filter: hosts are reached by their address, there
 * is nothing to undo, and no route leads from a host to the internet.
 */
export async function startDockerd(cacheDir: string, log?: Log): Promise<Dockerd> {
  for (const slot of slots) {
    const lock = await tryLock(`slot-${slot}`);
    if (!lock) continue;
    const name = `airdock-lab${slot}`;
    const runDir = `/run/${name}`;
    const dataRoot = join(cacheDir, slot === 0 ? 'engine' : `engine-${slot}`);
    const tidy = async () => {
      await run('ip', ['link', 'del', name]).catch(() => undefined);
      await removeRunDir(runDir, dataRoot);
    };
    try {
      await endPredecessor(runDir, log);
      await killAbandoned(runDir);
      await tidy();
      await addBridge(name, slot);
      const server = await launch(runDir, dataRoot, name);
      const stop = async () => {
        await server.end();
        await tidy();
        await lock[Symbol.asyncDispose]();
      };
      const socketPath = join(runDir, 'docker.sock');
      return { docker: new Docker({ socketPath }), socketPath, stop };
    } catch (error) {
      await tidy();
      await lock[Symbol.asyncDispose]();
      throw error;
    }
  }
  throw new Error(`${slots.length} labs run on this machine already`);
}

async function launch(runDir: string, dataRoot: string, bridge: string): Promise<ServerProcess> {
  const configFile = join(runDir, 'daemon.json');
  await mkdir(runDir, { recursive: true });
  await mkdir(dataRoot, { recursive: true });
  // An own one, so that the machine's does not change this engine.
  await writeFile(configFile, '{}');
  const socketPath = join(runDir, 'docker.sock');
  const paths = {
    'data-root': dataRoot,
    'exec-root': join(runDir, 'exec'),
    pidfile: join(runDir, 'docker.pid'),
    host: `unix://${socketPath}`,
  };
  const settings = {
    ...paths,
    'config-file': configFile,
    bridge,
    iptables: false,
    'ip-forward': false,
    'ip-masq': false,
    'userland-proxy': false,
    'shutdown-timeout': 5,
    'log-level': 'warn',
  };
  const args = Object.entries(settings).map(([key, value]) => `--${key}=${value}`);
  const probe = new Docker({ socketPath, timeout: 2000 });
  const ready = () => probe.ping().then(() => true);
  // SIGTERM at the death of this process lets the engine end its containers, which SIGKILL would leave running.
  const server = new ServerProcess({
    program: findProgram('dockerd') ?? 'dockerd',
    args,
    ready,
    stopSignal: 'SIGTERM',
    timeoutMs: 60_000,
  });
  await server.start();
  return server;
}

/** The engine of a killed run may still be ending its containers. */
async function endPredecessor(runDir: string, log?: Log): Promise<void> {
  const pid = Number(await readFile(join(runDir, 'docker.pid'), 'utf8').catch(() => ''));
  const isOurs = () =>
    pid > 0 &&
    existsSync(`/proc/${pid}/cmdline`) &&
    readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(`${runDir}/`);
  if (!isOurs()) return;
  log?.('waiting for the engine of an earlier run to end');
  process.kill(pid, 'SIGTERM');
  await waitFor(() => !isOurs(), { timeoutMs: 20_000 }).catch(() => process.kill(pid, 'SIGKILL'));
  await waitFor(() => !isOurs(), { what: `the engine of an earlier run (pid ${pid}) to end` });
}

/** Mounts must go first: deleting through one would delete what it shows. */
async function removeRunDir(runDir: string, dataRoot: string): Promise<void> {
  const mounts = (await readFile('/proc/self/mounts', 'utf8'))
    .split('\n')
    .map((line) => (line.split(' ')[1] ?? '').replaceAll('\\040', ' '));
  const ours = mounts.filter(
    (path) => path === dataRoot || path.startsWith(`${dataRoot}/`) || path.startsWith(`${runDir}/`),
  );
  for (const mount of ours.reverse()) await run('umount', ['-l', mount]);
  await rm(runDir, { recursive: true, force: true });
}

async function addBridge(name: string, slot: number): Promise<void> {
  const used = Object.entries(networkInterfaces()).flatMap(([key, entries]) => (key === name ? [] : (entries ?? [])));
  const candidates = ['10.213', '10.117', '172.29', '192.168'].map((prefix) => `${prefix}.${200 + slot}`);
  const free = candidates.find(
    (subnet) => !used.some(({ family, cidr }) => family === 'IPv4' && overlaps(`${subnet}.1/24`, cidr ?? '')),
  );
  if (!free) throw new Error(`no free subnet for the lab among ${candidates.join(', ')}`);
  await run('ip', ['link', 'add', name, 'type', 'bridge']);
  await run('ip', ['address', 'add', `${free}.1/24`, 'dev', name]);
  await run('ip', ['link', 'set', name, 'up']);
}

function overlaps(a: string, b: string): boolean {
  const [left, right] = [a, b].map((cidr) => {
    const [address = '', bits = '32'] = cidr.split('/');
    return { value: address.split('.').reduce((sum, byte) => sum * 256 + Number(byte), 0), bits: Number(bits) };
  });
  if (!left || !right) return false;
  const size = 2 ** (32 - Math.min(left.bits, right.bits));
  return Math.floor(left.value / size) === Math.floor(right.value / size);
}
