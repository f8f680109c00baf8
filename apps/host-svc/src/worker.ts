import { loadConfig } from '@airdock/platform/config';
import { exitWithProblem, stopSignal } from '@airdock/platform/process';
import { keepPrivate } from '@airdock/platform/service';
import { HostWorker } from './host-worker/host-worker.js';

/**
 * Only starts and watches the process that works, which answers health and metrics too: what a host does to that one it
 * does not do to this.
 */
try {
  const config = loadConfig();
  keepPrivate(config);
  const log = (about: Record<string, unknown>, message: string) =>
    process.stderr.write(`${JSON.stringify({ level: 50, time: Date.now(), ...about, msg: message })}\n`);
  const start = { file: config.file, overrides: {}, answersHealth: true };
  const worker = new HostWorker({
    dataDir: config.dataDir,
    start,
    maxMemoryBytes: config.hosts.workerMemoryMiB * 1024 ** 2,
    log,
  });
  const stopped = stopSignal();
  worker.start();
  void worker.ready.then(() =>
    process.stdout.write(`host-svc worker listens on http://${config.http.host}:${config.http.port}\n`),
  );
  await stopped;
  await worker.stop();
  process.exit(0);
} catch (error) {
  exitWithProblem(error);
}
