import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { AppError, toProblem } from '@airdock/core/errors';
import { killAfter } from './hard-stop.js';

const shutdownMs = 10_000;
/** Then whatever still hangs is killed. */
const killMs = 15_000;

/**
 * Resolves at SIGTERM or SIGINT; a second SIGINT ends the process at once. From the first on, closing may take ten
 * seconds, then the process ends anyway: BullMQ would wait for a Redis that is away for as long as it is, and running
 * jobs have been handed back by then.
 */
export const stopSignal = (): Promise<void> =>
  new Promise((resolve) => {
    const end = () => {
      process.stderr.write(
        `airdock: closing took longer than ${shutdownMs / 1000} s, perhaps because Redis is away; jobs continue at the next start\n`,
      );
      process.exit(0);
    };
    let isEnding = false;
    const onSignal = () => {
      if (!isEnding) killAfter(killMs);
      isEnding = true;
      setTimeout(end, shutdownMs).unref();
      resolve();
    };
    // A supervisor or the kernel may send SIGTERM more than once; a person presses Ctrl-C again because it is urgent.
    process.on('SIGTERM', onSignal);
    process.once('SIGINT', onSignal);
  });

/**
 * Gives back the memory that only the start needed. V8 would do so when it needs some, and a process that does next to
 * nothing needs none for hours. Source: https://nodejs.org/api/v8.html#v8setflagsfromstringflags
 */
export function freeStartupMemory(): void {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as (options: { type: 'major'; flavor: 'last-resort' }) => void;
  collect({ type: 'major', flavor: 'last-resort' });
}

/** Ends the process with a message that an operator can act on. */
export function exitWithProblem(error: unknown): never {
  const { code, port } = error as { code?: string; port?: number };
  process.stderr.write(`airdock: ${known()}\n`);
  process.exit(1);

  function known(): string | undefined {
    const { message, stack } = error as Error;
    if (error instanceof AppError) return `${message} (${error.code})\n${toProblem(error).nextStep}`;
    if (code === 'EADDRINUSE') return `another program listens on port ${port}; set airdock.http.port`;
    if (code === 'EACCES' || code === 'EPERM')
      return `${message}; use a folder that you may write, with --data-dir or airdock.dataDir`;
    return stack;
  }
}
