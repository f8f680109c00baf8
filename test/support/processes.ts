import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';

export interface ProcessInfo {
  pid: number;
  parent: number;
  commandLine: string;
  cwd: string;
  /** Empty where this user may not look. */
  environment: string;
}

/** All living processes that this user may look at, from /proc. Zombies are left out. */
export async function listProcesses(): Promise<ProcessInfo[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const found = await Promise.all(
    pids.map(async (pid): Promise<ProcessInfo | undefined> => {
      try {
        const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
        const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
        if (state === 'Z') return undefined;
        const commandLine = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).replaceAll('\0', ' ').trim();
        const environment = await readFile(`/proc/${pid}/environ`, 'utf8').catch(() => '');
        return {
          pid,
          parent: Number(parent),
          commandLine,
          cwd: await readlink(`/proc/${pid}/cwd`).catch(() => ''),
          environment,
        };
      } catch {
        return undefined;
      }
    }),
  );
  return found.filter((info) => info !== undefined);
}

/** Processes that have to do with a folder: by an argument, by where they run, or by a variable that they inherited. */
export async function processesOf(folder: string): Promise<string[]> {
  const all = await listProcesses();
  return all
    .filter(({ commandLine, cwd, environment }) =>
      [commandLine, cwd, environment].some((text) => text.includes(folder)),
    )
    .map(({ pid, commandLine }) => `${pid} ${commandLine}`);
}

/** The child of a process that runs this program. Throws when there is not exactly one. */
export async function childOf(parent: number | undefined, program: string): Promise<number> {
  const children = (await listProcesses()).filter(
    (info) => info.parent === parent && info.commandLine.startsWith(program),
  );
  if (children.length !== 1 || !children[0])
    throw new Error(`process ${parent} has ${children.length} children that run ${program}`);
  return children[0].pid;
}

/** The process that is one of a DU's two registries. Throws when there is not exactly one. */
export async function registryPid(
  { dataDir }: { dataDir: string },
  instance: 'read-write' | 'read-only',
): Promise<number> {
  const words = ` serve ${join(dataDir, 'registry', instance)}.`;
  // What starts it in its sandbox shows the same words.
  const all = (await listProcesses()).filter(
    ({ commandLine }) => commandLine.includes(words) && !commandLine.startsWith('bwrap '),
  );
  if (all.length !== 1 || !all[0]) throw new Error(`${all.length} processes are the ${instance} registry`);
  return all[0].pid;
}

export const registryPids = (du: { dataDir: string }): Promise<number[]> =>
  Promise.all((['read-write', 'read-only'] as const).map((instance) => registryPid(du, instance)));
