import { startOwned } from '@airdock/disk/programs/start-program';

/**
 * Has this process killed when it is still there after a while. `process.exit` is not enough: it waits for the threads
 * that are in the kernel, and one that opens a pipe, or reads a disk that is gone, may stay there for ever. The killer
 * goes with this process.
 */
export function killAfter(ms: number): void {
  const seconds = String(Math.ceil(ms / 1000));
  // `$PPID` is this process: it cannot be another one with its number, since with it the killer ends, and the killer's
  // `sleep` with that.
  const script = `trap 'kill "$!"; exit' USR1; sleep ${seconds} & wait "$!" && kill -KILL "$PPID"`;
  const killer = startOwned(['sh', '-c', script], 'USR1');
  killer.on('error', () =>
    process.stderr.write('airdock: no setpriv, so nobody ends this process if it hangs; install util-linux\n'),
  );
  killer.unref();
}
