/** The container engine that a lab uses: the machine's own where there is one, else a `dockerd` of the lab. */
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import Docker from 'dockerode';
import { findProgram } from '../servers.js';
import { removeAbandoned, removeRun } from './clean-up.js';
import { startDockerd } from './dockerd.js';
import { type Log, newRunId } from './owner.js';

/** A container engine, for one run of tests. Everything made in it must carry `labelsOf(runId)`. */
export interface LabEngine extends AsyncDisposable {
  docker: Docker;
  runId: string;
  /** Undefined for an engine that is reached over TCP. */
  socketPath: string | undefined;
  /** The cgroup that this run's containers live under; undefined where systemd decides. */
  cgroupParent: string | undefined;
  /** Removes what this run made, and ends the engine if the lab started it. */
  stop(): Promise<void>;
}

export interface EngineOptions {
  log?: Log | undefined;
  /** Ignores the machine's engine. For the lab's own tests. */
  own?: boolean;
}

/**
 * Where the lab keeps what is slow to make: `${AIRDOCK_CACHE:-~/.cache/airdock}/lab`. It may be deleted when no lab
 * runs.
 */
export function labCacheDir(): string {
  return join(
    process.env.AIRDOCK_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'airdock'),
    'lab',
  );
}

/**
 * DOCKER_HOST, else the engine at /var/run/docker.sock, else an own one. What earlier runs left because they were
 * killed is removed first. Where there is none and none can be started, `reason` says why.
 */
export async function startEngine({
  log,
  own = false,
}: EngineOptions = {}): Promise<{ engine: LabEngine } | { engine?: undefined; reason: string }> {
  const runId = newRunId();
  const found = own ? undefined : await findEngine();
  if (found) {
    await removeAbandoned(found.docker);
    return { engine: await describe(runId, found.docker, found.socketPath, async () => {}) };
  }
  if (process.env.DOCKER_HOST && !own)
    return { reason: `the engine at DOCKER_HOST (${process.env.DOCKER_HOST}) does not answer` };
  if (process.getuid?.() !== 0) return { reason: 'no container engine runs, and only root can start one' };
  const missing = ['dockerd', 'ip', 'setpriv'].filter((program) => !findProgram(program));
  if (missing.length > 0)
    return { reason: `no container engine runs, and to start one ${missing.join(', ')} is missing` };
  const daemon = await startDockerd(labCacheDir(), log);
  try {
    await removeAbandoned(daemon.docker, { all: true });
    return { engine: await describe(runId, daemon.docker, daemon.socketPath, daemon.stop) };
  } catch (error) {
    await daemon.stop();
    throw error;
  }
}

async function findEngine(): Promise<{ docker: Docker; socketPath: string | undefined } | undefined> {
  const host = process.env.DOCKER_HOST;
  const socketPath = host ? /^unix:\/\/(.+)/.exec(host)?.[1] : '/var/run/docker.sock';
  if (!host && !existsSync('/var/run/docker.sock')) return undefined;
  // Without a socket dockerode reads DOCKER_HOST and its companions.
  const connect = (timeout?: number) =>
    new Docker({ ...(host ? {} : { socketPath }), ...(timeout ? { timeout } : {}) });
  const answers = await connect(5000)
    .ping()
    .then(
      () => true,
      () => false,
    );
  return answers ? { docker: connect(), socketPath } : undefined;
}

async function describe(
  runId: string,
  docker: Docker,
  socketPath: string | undefined,
  end: () => Promise<void>,
): Promise<LabEngine> {
  const info = (await docker.info()) as { CgroupDriver?: string };
  const cgroupParent = info.CgroupDriver === 'systemd' ? undefined : `/airdock-lab-${runId}`;
  let stopped: Promise<void> | undefined;
  const stop = () => {
    stopped ??= (async () => {
      try {
        await removeRun(docker, runId);
      } finally {
        await end();
      }
    })();
    return stopped;
  };
  return { docker, runId, socketPath, cgroupParent, stop, [Symbol.asyncDispose]: stop };
}
