/**
 * The one place where this process starts others, beside the helper shell. What a program is told in its arguments
 * everybody on this machine can read: secrets go into files or its environment.
 */
import {
  type ChildProcess,
  type ChildProcessWithoutNullStreams,
  execFile,
  type StdioOptions,
  spawn,
} from 'node:child_process';
import { once } from 'node:events';
import { promisify } from 'node:util';

/** A program, a path or a name on PATH, and its arguments. */
export type Command = readonly [program: string, ...args: string[]];

/** What a program sees of our environment unless it is given another: nothing that could be a secret. */
const plainEnvironment = (): NodeJS.ProcessEnv => ({ PATH: process.env.PATH });

const run = promisify(execFile);
const maxOutputBytes = 64 * 1024;
const maxWords = 500;

/**
 * What a short program prints. It is waited for, and killed when it takes longer than `timeoutMs` or prints more than
 * 64 KiB. Throws the error of `execFile`, which has its `stdout`.
 */
export async function outputOf([program, ...args]: Command, { timeoutMs }: { timeoutMs: number }): Promise<string> {
  const options = { timeout: timeoutMs, killSignal: 'SIGKILL', maxBuffer: maxOutputBytes } as const;
  const { stdout } = await run(program, args, { ...options, env: plainEnvironment() });
  return stdout;
}

/** A program that turns one stream into another. */
export interface Filter extends Pick<ChildProcessWithoutNullStreams, 'stdin' | 'stdout' | 'kill'> {
  /** Its exit code when it has ended, null when a signal did that. Rejects when it could not be started. */
  ended: Promise<number | null>;
  /** The first that it said about itself, at most 500 characters. */
  words(): string;
}

/** Starts a filter, which ends when its input does; whoever reads no more kills it. */
export function startFilter([program, ...args]: Command): Filter {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], env: plainEnvironment() });
  let words = '';
  child.stderr.on('data', (chunk: Buffer) => {
    words = (words + chunk.toString('utf8')).slice(0, maxWords);
  });
  return {
    stdin: child.stdin,
    stdout: child.stdout,
    kill: (signal) => child.kill(signal),
    ended: once(child, 'close').then(([code]) => code as number | null),
    words: () => words.trim(),
  };
}

/**
 * Starts a program that gets a signal when this process ends, in whatever way that happens. The caller listens to
 * `error`: without `setpriv`, which is part of util-linux, none of them starts.
 */
export function startOwned(
  command: Command,
  endSignal: 'TERM' | 'KILL' | 'USR1',
  { env, stdio = 'ignore' }: { env?: NodeJS.ProcessEnv; stdio?: StdioOptions } = {},
): ChildProcess {
  return spawn('setpriv', ['--pdeathsig', endSignal, ...command], { stdio, ...(env && { env }) });
}

/**
 * Starts a program that outlives this process, in a session of its own, whose words go to an open file. It does not keep
 * this process alive. Throws when it cannot be started.
 */
export async function startDetached(
  [program, ...args]: Command,
  { env, logFd }: { env: NodeJS.ProcessEnv; logFd: number },
): Promise<ChildProcess> {
  const child = spawn(program, args, { detached: true, stdio: ['ignore', logFd, logFd], env });
  await once(child, 'spawn');
  child.unref();
  return child;
}
