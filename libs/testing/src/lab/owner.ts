/**
 * Who a lab's leftovers belong to, and whether that process still lives: what a killed run left is removed by the next
 * one, and nothing else is.
 */
import { readFileSync, readlinkSync } from 'node:fs';
import { createServer } from 'node:net';
import { waitFor } from '../servers.js';

/** Everything that a lab makes in an engine carries this label; its value is the run's id. */
export const runLabel = 'airdock-lab';
/** The machine on which the run's process can be looked for. */
export const machineLabel = 'airdock-lab.machine';

/**
 * Field 22 of proc_pid_stat(5); with the pid it names a process unmistakably. The command (field 2) may contain blanks.
 */
function startTime(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

/** Pids mean something only within one boot and one pid namespace; an engine may be shared by several. */
const machineId = `${readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()}/${readlinkSync('/proc/self/ns/pid')}`;

let runs = 0;
/** An id for one lab of this process: PID-STARTTIME-NUMBER. */
export const newRunId = (): string => `${process.pid}-${startTime(process.pid)}-${runs++}`;

/** The labels of what the run makes. */
export const labelsOf = (runId: string): Record<string, string> => ({ [runLabel]: runId, [machineLabel]: machineId });

/** True when the process of this run has ended. */
export function isGone(runId: string): boolean {
  const [pid, started] = runId.split('-');
  return startTime(Number(pid)) !== started;
}

/** True for labels of a run on this machine whose process has ended. */
export function isAbandoned(labels: Record<string, string> = {}): boolean {
  const runId = labels[runLabel];
  return runId !== undefined && labels[machineLabel] === machineId && isGone(runId);
}

/**
 * Takes a lock that ends with the process: an abstract Unix socket (unix(7)) can be bound once per network namespace,
 * and leaves no file. Undefined when another process holds it.
 */
export async function tryLock(name: string): Promise<AsyncDisposable | undefined> {
  const server = createServer();
  const taken = await new Promise<boolean>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EADDRINUSE' ? resolve(true) : reject(error),
    );
    server.listen(`\0airdock-lab/${name}`, () => resolve(false));
  });
  if (taken) return undefined;
  server.unref();
  return { [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())) };
}

/** As `tryLock`, and waits until the lock is free. */
export const waitForLock = (name: string, timeoutMs: number): Promise<AsyncDisposable> =>
  waitFor(() => tryLock(name), { timeoutMs, intervalMs: 200, what: `the lock ${name}` });

/** Told before something slow happens. */
export type Log = (line: string) => void;
