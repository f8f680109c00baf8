import { AppError } from '@airdock/core/errors';

const shutdownMs = 10_000;

/**
 * Resolves at SIGTERM or SIGINT; a second SIGINT ends the process at once. From the first on, closing may take ten seconds, then the process ends anyway:
 * BullMQ would wait for a Redis that is away for as long as it is, and running jobs have been handed back by then.
 */
export const stopSignal = (): Promise<void> =>
  new Promise((resolve) => {
    const end = () => {
      process.stderr.write(`airdock: closing took longer than ${shutdownMs / 1000} s, perhaps because Redis is away; jobs continue at the next start\n`);
      process.exit(0);
    };
    const onSignal = () => {
      setTimeout(end, shutdownMs).unref();
      resolve();
    };
    // A supervisor or the kernel may send SIGTERM more than once; a person presses Ctrl-C again because it is urgent.
    process.on('SIGTERM', onSignal);
    process.once('SIGINT', onSignal);
  });

/** Ends the process with a message that an operator can act on. */
export function exitWithProblem(error: unknown): never {
  const { code, port } = error as { code?: string; port?: number };
  process.stderr.write(`airdock: ${known()}\n`);
  process.exit(1);

  function known(): string | undefined {
    const { message, stack } = error as Error;
    if (error instanceof AppError) return message;
    if (code === 'EADDRINUSE') return `another program listens on port ${port}; set airdock.http.port`;
    if (code === 'EACCES' || code === 'EPERM') return `${message}; use a folder that you may write, with --data-dir or airdock.dataDir`;
    return stack;
  }
}
