/** Removes what a lab made: containers, volumes, images, cgroups. */
import { readdir, readFile, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import type Docker from 'dockerode';
import { waitFor } from '../servers.js';
import { isAbandoned, isGone, runLabel } from './owner.js';

const notThere = (error: unknown) => {
  if ((error as { statusCode?: number }).statusCode !== 404) throw error;
};
/** Removed by someone else, or used by an image that is removed with the next run. */
const notThereOrUsed = (error: unknown) => {
  if ((error as { statusCode?: number }).statusCode !== 409) notThere(error);
};

type Selects = (labels: Record<string, string> | undefined) => boolean;

async function removeLabelled(docker: Docker, selects: Selects): Promise<void> {
  const filters = { label: [runLabel] };
  const containers = await docker.listContainers({ all: true, filters });
  const remove = ({ Id }: { Id: string }) => docker.getContainer(Id).remove({ force: true, v: true }).catch(notThere);
  await Promise.all(containers.filter(({ Labels }) => selects(Labels)).map(remove));
  const { Volumes: volumes } = await docker.listVolumes({ filters });
  await Promise.all(
    (volumes ?? [])
      .filter(({ Labels }) => selects(Labels))
      .map(({ Name }) => docker.getVolume(Name).remove({ force: true }).catch(notThere)),
  );
  for (const { Id, Labels } of await docker.listImages({ filters })) {
    if (selects(Labels)) await docker.getImage(Id).remove({ force: true }).catch(notThereOrUsed);
  }
}

/** Removes what the run with this id made. */
export async function removeRun(docker: Docker, runId: string): Promise<void> {
  await removeLabelled(docker, (labels) => labels?.[runLabel] === runId);
  await removeCgroups((id) => id === runId);
}

/**
 * Removes what runs left whose process is gone; with `all`, what any run left: for an engine that nobody else can be
 * using.
 */
export async function removeAbandoned(docker: Docker, { all = false } = {}): Promise<void> {
  await removeLabelled(docker, (labels) => all || isAbandoned(labels));
  await removeCgroups(isGone);
}

/** Ends the containers that an own engine left running because it was killed: without their engine nobody else can. */
export async function killAbandoned(engineRunDir: string): Promise<void> {
  const isShim = (commandLine: string) =>
    commandLine.includes('containerd-shim') && commandLine.includes(`${engineRunDir}/`);
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const commandLine = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (isShim(commandLine)) kill(Number(pid));
  }
  const paths = await cgroupsOf(isGone);
  const isEmpty = async () => {
    const pids = (await Promise.all(paths.map(processesIn))).flat();
    pids.forEach(kill);
    return pids.length === 0;
  };
  await waitFor(isEmpty, { what: 'the containers of a killed run to end' });
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** The pids in a cgroup and below. */
async function processesIn(path: string): Promise<number[]> {
  const own = await readFile(join(path, 'cgroup.procs'), 'utf8').catch(() => '');
  const below = await Promise.all((await directoriesIn(path)).map((name) => processesIn(join(path, name))));
  // Processes of other pid namespaces show as 0.
  return [
    ...own
      .split('\n')
      .map(Number)
      .filter((pid) => pid > 0),
    ...below.flat(),
  ];
}

async function directoriesIn(path: string): Promise<string[]> {
  const entries = await readdir(path, { withFileTypes: true }).catch(() => []);
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}

/** The cgroups of runs. Version 2 has one tree, version 1 one for each controller, hybrid machines both. */
async function cgroupsOf(selects: (runId: string) => boolean): Promise<string[]> {
  const root = '/sys/fs/cgroup';
  const trees = [root, ...(await directoriesIn(root)).map((name) => join(root, name))];
  const found = await Promise.all(
    trees.map(async (tree) => (await directoriesIn(tree)).map((name) => join(tree, name))),
  );
  return found.flat().filter((path) => {
    const runId = /\/airdock-lab-(\d+-\d+-\d+)$/.exec(path)?.[1];
    return runId !== undefined && selects(runId);
  });
}

/**
 * The engine inside a host makes its own cgroups in the machine's tree, and dies with the host before it removes them.
 */
async function removeCgroups(selects: (runId: string) => boolean): Promise<void> {
  for (const path of await cgroupsOf(selects)) await removeCgroup(path);
}

/**
 * A cgroup can only be removed when it is empty, children first. One that still has processes is left for the next run.
 */
async function removeCgroup(path: string): Promise<void> {
  for (const name of await directoriesIn(path)) await removeCgroup(join(path, name));
  await rmdir(path).catch(() => undefined);
}
