/**
 * Programs that read what others have made — the registry's engine, decompressors — run where nothing else is: without
 * capabilities, network and other processes, and with no file of this machine but the system's programs and those that
 * are named. A program that was taken over can then read no key and reach nobody. By bubblewrap:
 * https://github.com/containers/bubblewrap
 */
import { execFileSync } from 'node:child_process';
import { lstatSync, readlinkSync, realpathSync } from 'node:fs';

/** What a program in the sandbox may touch; everything else is out of its sight. */
export interface Sandbox {
  /** Files and folders that the program may read. */
  readable?: readonly string[];
  /** Folders that it may write to. */
  writable?: readonly string[];
  /** Whether it may use the network of this machine. Default false. */
  hasNetwork?: boolean;
  /** Whether it ends with the process that started it. Default true. */
  endsWithParent?: boolean;
}

/** As a process of this program is seen in /proc, beside the one that it starts. */
export const wrapper = 'bwrap';

/** Where programs and their libraries are. */
const systemFolders = ['/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32'];
/** Names of users and services, and certificates, which are no secrets. */
const systemFiles = [
  '/etc/ld.so.cache',
  '/etc/ld.so.conf',
  '/etc/ld.so.conf.d',
  '/etc/ssl/certs',
  '/etc/nsswitch.conf',
  '/etc/localtime',
  '/etc/alternatives',
];

/**
 * The command that runs a program in a sandbox, or the plain one where this machine allows none: see `whyNoSandbox`.
 */
export function inSandbox([program, ...args]: readonly [string, ...string[]], sandbox: Sandbox): [string, ...string[]] {
  if (whyNoSandbox() !== undefined) return [program, ...args];
  const { readable = [], writable = [], hasNetwork = false, endsWithParent = true } = sandbox;
  return [
    wrapper,
    '--unshare-all',
    ...(hasNetwork ? ['--share-net'] : []),
    ...(endsWithParent ? ['--die-with-parent'] : []),
    ...['--new-session', '--cap-drop', 'ALL', '--ro-bind', '/usr', '/usr'],
    ...systemFolders.flatMap(systemFolder),
    ...systemFiles.flatMap((path) => ['--ro-bind-try', path, path]),
    ...['--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp', '--setenv', 'HOME', '/tmp', '--chdir', '/'],
    ...writable.flatMap((path) => ['--bind', path, path]),
    ...readable.flatMap((path) => ['--ro-bind', path, path]),
    '--',
    program,
    ...args,
  ];
}

/** On most systems a link into /usr by now. */
function systemFolder(path: string): string[] {
  const info = lstatSync(path, { throwIfNoEntry: false });
  if (!info) return [];
  return info.isSymbolicLink() ? ['--symlink', readlinkSync(path), path] : ['--ro-bind', path, path];
}

const retryMs = 60_000;
let reason: string | false | undefined;
let triedAt = 0;

/**
 * Why programs run without a sandbox here; undefined when they have one. Where it does not work it is tried again now
 * and then.
 */
export function whyNoSandbox(): string | undefined {
  if (reason === undefined || (reason !== false && performance.now() - triedAt > retryMs)) {
    triedAt = performance.now();
    reason = false;
    try {
      const [program, ...args] = inSandbox(['/usr/bin/true'], {});
      execFileSync(program, args, { timeout: 10_000, stdio: ['ignore', 'ignore', 'pipe'] });
    } catch (error) {
      const { code, stderr } = error as NodeJS.ErrnoException & { stderr?: Buffer };
      reason =
        code === 'ENOENT'
          ? 'bubblewrap is not installed'
          : `bubblewrap: ${stderr?.toString('utf8').trim().slice(0, 300) || code}`;
    }
  }
  return reason === false ? undefined : reason;
}

/**
 * The file that a program's name or path leads to; a program that lies outside of the system's folders has to be
 * readable in its sandbox.
 */
export function programFile(name: string, path = process.env.PATH ?? ''): string | undefined {
  const candidates = name.includes('/') ? [name] : path.split(':').map((folder) => `${folder}/${name}`);
  for (const candidate of candidates) {
    try {
      return realpathSync(candidate);
    } catch {
      // Not in this folder.
    }
  }
  return undefined;
}
