/**
 * Which processes are ours, known by what they are: their owner, start time, boot and program, and a mark in their
 * environment that only we can have made. The words of a command line prove nothing, since any user may run a program
 * with any arguments.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync, readlinkSync, statSync } from 'node:fs';
import { readdir, readFile, readlink, rename, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { wrapper } from '@airdock/disk/programs/sandbox';

const stopTimeoutMs = 10_000;
/** What was killed is gone at once, unless it is in the kernel. */
const killTimeoutMs = 5_000;
const variable = 'AIRDOCK_PROCESS';

/** A process that was started here, by this Airdock or by an earlier one. */
export interface OwnProcess {
  pid: number;
  /** Clock ticks after the boot, see proc_pid_stat(5): with it a process id that was used again is told apart. */
  startTime: string;
  bootId: string;
  /** What it was started with. */
  version: string;
  /** The program that it runs, once it was seen to answer. */
  program: string | undefined;
}

/** One kind of process of one engine, of which there should be one at a time. */
export class ProcessIdentity {
  private readonly mark: string;

  /**
   * @param recordFile where the process is written down, in a folder of ours
   * @param secret known to us alone; the mark is derived from it
   * @param users user ids that such a process may have
   */
  constructor(
    private readonly recordFile: string,
    secret: string,
    private readonly users: readonly number[],
  ) {
    this.mark = createHash('sha256').update(`${secret}\0${recordFile}`).digest('hex');
  }

  /**
   * What a process of this kind has to have in its environment, to be found again. `version` says what it was started
   * with.
   */
  environment(version: string): Record<string, string> {
    return { [variable]: `${this.mark}.${version}` };
  }

  /** Writes down which process it is: the next look needs to read nothing but that. */
  async record(pid: number, version: string): Promise<void> {
    const found = this.look(pid, version);
    if (!found) return;
    // A power cut ends the process too: the file need not survive it.
    await writeFile(`${this.recordFile}.new`, JSON.stringify(found), { mode: 0o600 });
    await rename(`${this.recordFile}.new`, this.recordFile);
  }

  /** The process that was written down, if it is still that one. Reads four small files. */
  async recorded(): Promise<OwnProcess | undefined> {
    let noted: Partial<OwnProcess>;
    try {
      noted = (JSON.parse(await readFile(this.recordFile, 'utf8')) as Partial<OwnProcess> | null) ?? {};
    } catch {
      // It is only a short cut to what `find` sees.
      return undefined;
    }
    const { pid, version } = noted;
    if (!Number.isInteger(pid) || typeof version !== 'string') return undefined;
    const now = this.look(pid as number, version);
    const isSame =
      now && now.startTime === noted.startTime && now.bootId === noted.bootId && now.program === noted.program;
    return isSame ? now : undefined;
  }

  /**
   * All processes that carry the mark and have one of the users: Airdock may have been killed before it wrote one down.
   * Looks at every process of the machine.
   */
  async find(): Promise<OwnProcess[]> {
    const found: OwnProcess[] = [];
    for (const pid of await processIds()) {
      const version = await this.versionOf(pid);
      const own = version === undefined ? undefined : this.look(pid, version);
      // What wraps such a process carries the mark too, and ends with it.
      if (own && basename(own.program ?? '') !== wrapper) found.push(own);
    }
    return found;
  }

  /** What a process of ours was started with, by its mark; undefined when it has none, or belongs to somebody else. */
  async versionOf(pid: number): Promise<string | undefined> {
    if (!this.isOurs(pid)) return undefined;
    const environment = await readFile(`/proc/${pid}/environ`, 'latin1').catch(() => '');
    const value = environment.split('\0').find((entry) => entry.startsWith(`${variable}=`));
    const [mark = '', version] = value?.slice(variable.length + 1).split('.') ?? [];
    return mark.length === this.mark.length && timingSafeEqual(Buffer.from(mark), Buffer.from(this.mark))
      ? version
      : undefined;
  }

  private isOurs(pid: number): boolean {
    const uid = ownerOf(pid);
    return uid !== undefined && this.users.includes(uid);
  }

  private look(pid: number, version: string): OwnProcess | undefined {
    const state = stateOf(pid);
    if (!state?.isRunning || !this.isOurs(pid)) return undefined;
    return { pid, startTime: state.startTime, bootId: bootId(), version, program: programOf(pid) };
  }
}

/**
 * Ends a process in good order, after `graceMs` by force, and waits until it is gone. Touches no other process that got
 * the same id. Throws `process_not_ended`, with its id and why, for one that the kernel does not let go, such as one
 * that waits for a disk that is gone.
 */
export async function endProcess(
  { pid, startTime }: Pick<OwnProcess, 'pid' | 'startTime'>,
  { graceMs = stopTimeoutMs } = {},
): Promise<void> {
  const deadline = performance.now() + graceMs;
  const isRunning = () => {
    const state = stateOf(pid);
    return state?.isRunning === true && state.startTime === startTime;
  };
  const signal = (name: 'SIGTERM' | 'SIGKILL') => {
    try {
      process.kill(pid, name);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ESRCH')
        throw new AppError('process_not_ended', { detail: `pid ${pid}: ${code}`, pid }, { cause: error });
    }
  };
  if (isRunning()) signal('SIGTERM');
  while (isRunning()) {
    if (performance.now() > deadline) signal('SIGKILL');
    if (performance.now() > deadline + killTimeoutMs)
      throw new AppError('process_not_ended', {
        detail: `pid ${pid} (${programOf(pid) ?? 'unknown program'}) is there ${killTimeoutMs / 1000} s after SIGKILL`,
        pid,
      });
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A process that passes for one of ours, or listens where one of ours should. */
export interface ForeignProcess {
  /** Null when this user may not see it. */
  pid: number | null;
  uid: number;
  /** Its program, as far as this user may see it. */
  program: string | null;
}

/** A process that looks like one of ours, with what tells it from another of the same pid. */
export type ShownProcess = ForeignProcess & Pick<OwnProcess, 'pid' | 'startTime'>;

/** Processes that show these words in their arguments: ours, decoys, or those of an earlier version. */
export async function processesThatShow(matches: (words: readonly string[]) => boolean): Promise<ShownProcess[]> {
  const found: ShownProcess[] = [];
  for (const pid of await processIds()) {
    const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0');
    if (!matches(words)) continue;
    const uid = ownerOf(pid);
    const state = stateOf(pid);
    if (uid !== undefined && state)
      found.push({ pid, uid, program: programOf(pid) ?? null, startTime: state.startTime });
  }
  return found;
}

/** `127.0.0.1`, `::1`, all of either, and 127.0.0.1 as IPv6 has it, as /proc shows them. */
const loopback = new Set([
  ...['0100007F', '00000000', '00000000000000000000000001000000', '0'.repeat(32)],
  ...['0000000000000000FFFF00000100007F', '0000000000000000FFFF000000000000'],
]);

const maxListeners = 20;

/** Someone else who listens on one of our ports. */
export interface ForeignListener extends ForeignProcess {
  port: number;
}

/**
 * Who else than `ownPid` listens on a TCP port where programs of this machine find it under the name localhost.
 * Source: https://docs.kernel.org/networking/proc_net_tcp.html
 */
export async function foreignListeners(port: number, ownPid: number | undefined): Promise<ForeignListener[]> {
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  const own = new Set(ownPid === undefined ? [] : await openFiles(ownPid));
  const found = new Map<string, ForeignListener>();
  for (const table of ['/proc/net/tcp', '/proc/net/tcp6'])
    for (const line of (await readFile(table, 'latin1').catch(() => '')).split('\n')) {
      const [, local = '', , state, , , , uid, , inode] = line.trim().split(/ +/);
      const [address = '', localPort] = local.split(':');
      const socket = `socket:[${inode}]`;
      if (state !== '0A' || localPort !== hex || !loopback.has(address) || own.has(socket)) continue;
      // He may have as many as he likes.
      if (found.size < maxListeners) found.set(socket, { port, pid: null, uid: Number(uid), program: null });
    }
  for (const pid of found.size > 0 ? await processIds() : [])
    for (const socket of await openFiles(pid)) {
      const listener = found.get(socket);
      if (listener) Object.assign(listener, { pid, program: programOf(pid) ?? null });
    }
  return [...found.values()];
}

async function openFiles(pid: number): Promise<string[]> {
  const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => []);
  return Promise.all(descriptors.map((descriptor) => readlink(`/proc/${pid}/fd/${descriptor}`).catch(() => '')));
}

const processIds = async (): Promise<number[]> =>
  (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);

// One process is looked at by calls that wait: the kernel answers them from memory, and supervision asks every two
// seconds. A way through a thread costs ten times as much.

let thisBoot: string | undefined;
const bootId = (): string => {
  thisBoot ??= readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  return thisBoot;
};

const ownerOf = (pid: number): number | undefined => statSync(`/proc/${pid}`, { throwIfNoEntry: false })?.uid;

/** The file stays the program's after it was replaced by another. */
const programOf = (pid: number): string | undefined => {
  try {
    return readlinkSync(`/proc/${pid}/exe`).replace(/ \(deleted\)$/, '');
  } catch {
    // Gone, or of another user.
    return undefined;
  }
};

/**
 * The fields behind the name in brackets, see proc_pid_stat(5). A zombie without threads holds nothing any more;
 * whoever started it will reap it.
 */
function stateOf(pid: number): { isRunning: boolean; startTime: string } | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { isRunning: fields[0] !== 'Z' || Number(fields[17]) > 1, startTime: fields[19] ?? '' };
}
