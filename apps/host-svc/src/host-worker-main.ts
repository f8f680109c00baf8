/**
 * The process that speaks to hosts: SSH, tunnels, and whatever reads what a host says. Started and watched by
 * `HostWorker`.
 */
import { loadConfig } from '@airdock/platform/config';
import { exitWithProblem, freeStartupMemory } from '@airdock/platform/process';
import { beatMs, type FromWorker, type ToWorker, type WorkerStart } from './host-worker/host-worker.js';
import { noteServedHosts } from './served-host.js';

const shutdownMs = 5_000;

const send = (message: FromWorker) => {
  if (process.connected) process.send?.(message, () => undefined);
};
const begun = new Promise<WorkerStart>((resolve) => {
  process.on('message', (message: ToWorker) => {
    if (message.type === 'start') resolve(message);
    else end();
  });
});
let close: () => Promise<void> = async () => undefined;
let isEnding = false;
/** What runs is handed back; whoever waits for it longer than that takes it over anyway. */
function end(): void {
  if (isEnding) return;
  isEnding = true;
  setTimeout(() => process.exit(0), shutdownMs);
  void close().then(() => process.exit(0));
}
// The parent is gone, or says so; Ctrl-C is the parent's.
process.once('disconnect', end);
process.on('SIGTERM', end);
process.on('SIGINT', () => undefined);

try {
  // Loaded while the parent still prepares.
  const [{ createWorkerApp }, { rootModule, serve, startProcessors }, { HostModule }, { HostService }] =
    await Promise.all([
      import('@airdock/platform/worker-app'),
      import('@airdock/platform/service'),
      import('./host.module.js'),
      import('./host/host.service.js'),
    ]);
  const start = await begun;
  noteServedHosts(start.servedFile);
  let heaviest: () => { hostId: string; bytes: number } | undefined = () => undefined;
  const beat = () => send({ type: 'beat', heaviest: heaviest() });
  beat();
  setInterval(beat, beatMs);
  const config = loadConfig({ ...(start.file ? { file: start.file } : {}), overrides: start.overrides });
  const module = rootModule(config, { host: HostModule }, ['worker']);
  if (start.answersHealth) {
    const app = await serve(config, module, 'Airdock host-svc');
    close = () => app.close();
    heaviest = () => app.get(HostService, { strict: false }).heaviest();
  } else {
    const app = await createWorkerApp(module);
    close = () => app.close();
    heaviest = () => app.get(HostService, { strict: false }).heaviest();
    startProcessors(app);
  }
  send({ type: 'ready' });
  freeStartupMemory();
} catch (error) {
  exitWithProblem(error);
}
