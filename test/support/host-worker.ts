/** The process of a DU that speaks to hosts, for tests that end it, stop it, or make it stand still. */
import { readFile } from 'node:fs/promises';
import { waitFor } from '@airdock/testing/servers';
import type { Du } from './du.js';
import { listProcesses } from './processes.js';

/** Its process id, when it runs. */
export async function findHostWorker(parent: number | undefined): Promise<number | undefined> {
  return (await listProcesses()).find((one) => one.parent === parent && one.commandLine.includes('host-worker-main'))
    ?.pid;
}

export const hostWorkerOf = ({ pid }: Du): Promise<number> =>
  waitFor(() => findHostWorker(pid), { what: 'the host worker', timeoutMs: 30_000 });

/** Another one than before. */
export const nextHostWorker = ({ pid }: Du, before: number, timeoutMs = 30_000): Promise<number> =>
  waitFor(
    async () => {
      const now = await findHostWorker(pid);
      return now === before ? undefined : now;
    },
    { what: 'another host worker', timeoutMs, intervalMs: 50 },
  );

/**
 * Makes a process stand still for ever at the next byte that comes from a port: what a bug in whatever reads that would
 * do. By Node.js' inspector, which SIGUSR1 opens; the DU must have been started with `inspected`, and `output` gives
 * what it has printed.
 */
export async function freezeOnDataFrom(pid: number, port: number, output: () => string): Promise<void> {
  const seen = output().length;
  process.kill(pid, 'SIGUSR1');
  const url = await waitFor(() => /Debugger listening on (ws:\S+)/.exec(output().slice(seen))?.[1], {
    what: 'the inspector',
    timeoutMs: 30_000,
  });
  const socket = new WebSocket(url);
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = () => reject(new Error('the inspector does not answer'));
  });
  const expression = `process._getActiveHandles().filter((one) => one.remotePort === ${port}).map((one) => one.on('data', () => { for (;;); })).length`;
  const answered = new Promise<string>((resolve) => {
    socket.onmessage = ({ data }) => resolve(String(data));
  });
  socket.send(JSON.stringify({ id: 1, method: 'Runtime.evaluate', params: { expression } }));
  const answer = JSON.parse(await answered) as { result: { result: { value: number } } };
  if (!(answer.result.result.value > 0)) throw new Error(`no connection from port ${port}: ${JSON.stringify(answer)}`);
  socket.close();
}
/** Of a DU: SIGUSR1 opens the inspector on any free port of loopback. */
export const inspected = { NODE_OPTIONS: '--inspect-port=0' };

/** Stops a process at a moment when it serves nobody, as its file of the served host says. */
export async function stopWhileIdle(pid: number, servedFile: string): Promise<void> {
  const isIdle = async () => {
    process.kill(pid, 'SIGSTOP');
    if ((await readFile(servedFile, 'utf8')).trim() === '') return true;
    process.kill(pid, 'SIGCONT');
    return false;
  };
  await waitFor(isIdle, { what: 'the process to be idle', timeoutMs: 10_000 });
}
