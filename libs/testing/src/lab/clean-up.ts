/** Removes what a lab made: containers, volumes, images, cgroups. */
import { readdir, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import type Docker from 'dockerode';
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
  await Promise.all((volumes ?? []).filter(({ Labels }) => selects(Labels)).map(({ Name }) => docker.getVolume(Name).remove({ force: true }).catch(notThere)));
  for (const { Id, Labels } of await docker.listImages({ filters })) {
    if (selects(Labels)) await docker.getImage(Id).remove({ force: true }).catch(notThereOrUsed);
  }
}

/** Removes what the run with this id made. */
export async function removeRun(docker: Docker, runId: string): Promise<void> {
  await removeLabelled(docker, (labels) => labels?.[runLabel] === runId);
  await removeCgroups((id) => id === runId);
}

/** Removes what runs left whose process is gone; with `all`, what any run left: for an engine that nobody else can be using. */
export async function removeAbandoned(docker: Docker, { all = false } = {}): Promise<void> {
  await removeLabelled(docker, (labels) => all || isAbandoned(labels));
  await removeCgroups(isGone);
}

/** The engine inside a host makes its own cgroups in the machine's tree, and dies with the host before it removes them. */
async function removeCgroups(selects: (runId: string) => boolean): Promise<void> {
  const root = '/sys/fs/cgroup';
  const controllers = await readdir(root, { withFileTypes: true }).catch(() => []);
  // Version 2 has one tree at the root, version 1 one for each controller, hybrid machines both.
  for (const tree of [root, ...controllers.filter((entry) => entry.isDirectory()).map(({ name }) => join(root, name))]) {
    for (const name of await readdir(tree).catch(() => [])) {
      const runId = /^airdock-lab-(\d+-\d+-\d+)$/.exec(name)?.[1];
      if (runId && selects(runId)) await removeCgroup(join(tree, name));
    }
  }
}

/** A cgroup can only be removed when it is empty, children first. One that still has processes is left for the next run. */
async function removeCgroup(path: string): Promise<void> {
  const entries = await readdir(path, { withFileTypes: true }).catch(() => []);
  for (const entry of entries) if (entry.isDirectory()) await removeCgroup(join(path, entry.name));
  await rmdir(path).catch(() => undefined);
}
