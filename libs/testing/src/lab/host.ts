/**
 * A machine for Airdock to configure: own file system, own address, a real sshd, and a real Docker or containerd if
 * wanted.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { connect } from 'node:net';
import { PassThrough } from 'node:stream';
import type Docker from 'dockerode';
import { waitFor } from '../servers.js';
import { sshKeyPair } from '../ssh-keys.js';
import type { LabEngine } from './engine.js';
import { tarOf } from './images.js';
import type { Log } from './owner.js';
import { labelsOf } from './owner.js';
import { ensureHostImage, hostFiles } from './rootfs.js';

export interface HostOptions {
  /** Its host name; default `host-N`. Once per engine. */
  name?: string;
  /** False removes Docker from the host. Default true. */
  withDocker?: boolean;
  /** containerd as Debian brings it, in place of Docker. */
  withContainerd?: boolean;
  /** systemd is its first process, and starts sshd and the runtime by their units. Default false. */
  withSystemd?: boolean;
  /** What /etc/os-release says; default Debian. The host has apt and dnf. */
  osRelease?: string;
  /** A program on the host listens on this port of 127.0.0.1. */
  occupyPort?: number;
  /** The account `admin` logs in with this password only, and sudo asks for it. */
  adminPassword?: string;
  log?: Log | undefined;
}

export interface ExecResult {
  stdout: string;
  stderr: string;
  exitCode: number;
}

/** A running host. Disposal is `stop`. */
export interface LabHost extends AsyncDisposable {
  /** The container's id in the engine. */
  id: string;
  name: string;
  address: string;
  port: number;
  /** `root`. The key opens two more accounts: `admin` may use sudo without a password, `guest` may not use it. */
  user: string;
  /** Ed25519 in OpenSSH format; one for all hosts of this process. */
  privateKey: string;
  /** The line of /etc/ssh/ssh_host_ed25519_key.pub. */
  hostKey: string;
  /** `SHA256:…`, as ssh prints it. */
  hostKeyFingerprint: string;
  /** Runs a shell command as root, without SSH. `timeoutMs` defaults to 60 000. */
  exec(command: string, options?: { timeoutMs?: number }): Promise<ExecResult>;
  /** Copies a folder of this machine into the host, for everybody to read. */
  copyIn(folder: string, path: string): Promise<void>;
  /** Resolves when sshd answers and, with a runtime, that answers. `startHost` has awaited it. */
  ready(): Promise<void>;
  /** Cuts the power, and starts it again; files, address and host key stay. Resolves when it is ready. */
  reboot(): Promise<void>;
  /** Removes the host and its disks. */
  stop(): Promise<void>;
}

/** dockerd and sshd need these; `--privileged` is refused where the engine itself lacks a capability. */
const capabilities = [
  'SYS_ADMIN',
  'NET_ADMIN',
  'SYS_PTRACE',
  'SYSLOG',
  'IPC_LOCK',
  'SYS_NICE',
  'DAC_READ_SEARCH',
  'LINUX_IMMUTABLE',
];
const bootCapabilities = ['SYS_BOOT', 'SYS_TIME', 'AUDIT_READ', 'SYS_CHROOT'];
const keys = sshKeyPair('airdock-lab');
let count = 0;

/**
 * Starts a host and waits until it is ready, usually four to eight seconds. The first one on a machine makes
 * `hostImage`.
 */
export async function startHost(engine: LabEngine, options: HostOptions = {}): Promise<LabHost> {
  const {
    name = `host-${++count}`,
    withContainerd = false,
    withDocker = !withContainerd,
    withSystemd = false,
  } = options;
  const { osRelease = '', occupyPort, adminPassword, log } = options;
  const runtime = withContainerd ? 'containerd' : withDocker ? 'docker' : '';
  const { docker, runId } = engine;
  const image = await ensureHostImage(engine, log);
  const fullName = `airdock-lab-${runId}-${name}`;
  const labels = labelsOf(runId);
  const env = {
    AIRDOCK_AUTHORIZED_KEY: keys.public,
    AIRDOCK_RUNTIME: runtime,
    AIRDOCK_OS_RELEASE: osRelease,
    AIRDOCK_OCCUPY_PORT: occupyPort ?? '',
    AIRDOCK_SYSTEMD: withSystemd ? 'yes' : '',
    // By this systemd knows that it is in a container.
    ...(withSystemd ? { container: 'docker' } : {}),
    AIRDOCK_CGROUP_PARENT: `/airdock-lab-${runId}/${name}`,
  };
  // overlayfs cannot lie on overlayfs, so the runtime's data needs a volume; also where Docker may be installed later.
  const mounts: Docker.MountSettings[] = [
    {
      Type: 'volume',
      Source: fullName,
      Target: `/var/lib/${runtime || 'docker'}`,
      VolumeOptions: { NoCopy: true, Labels: labels, DriverConfig: { Name: 'local', Options: {} } },
    },
  ];
  const hostConfig: Docker.HostConfig & { CgroupnsMode: string } = {
    CapAdd: withSystemd ? [...capabilities, ...bootCapabilities] : capabilities,
    SecurityOpt: ['seccomp=unconfined', 'apparmor=unconfined'],
    // What `--security-opt systempaths=unconfined` means: the engine inside mounts its own /proc and writes to
    // /proc/sys.
    MaskedPaths: [],
    ReadonlyPaths: [],
    // systemd wants a tree for itself; with the machine's it would be one for all hosts.
    CgroupnsMode: withSystemd ? 'private' : 'host',
    Binds: withSystemd ? [] : ['/sys/fs/cgroup:/sys/fs/cgroup:rw'],
    Mounts: mounts,
    // Like a real host's: empty after a reboot, without pid files that name other processes now.
    Tmpfs: { '/run': 'exec' },
    ...(engine.cgroupParent ? { CgroupParent: engine.cgroupParent } : {}),
  };
  const container = await docker.createContainer({
    name: fullName,
    Hostname: name,
    Image: image,
    Cmd: ['/init.sh'],
    Env: Object.entries(env).map(([key, value]) => `${key}=${value}`),
    Labels: labels,
    HostConfig: hostConfig,
  });
  const exec: LabHost['exec'] = (command, { timeoutMs = 60_000 } = {}) => execIn(docker, container, command, timeoutMs);
  const stop = async () => {
    await container.remove({ force: true, v: true }).catch(ignoreMissing);
    await docker.getVolume(fullName).remove({ force: true }).catch(ignoreMissing);
  };
  try {
    await container.putArchive(await tarOf(hostFiles), { path: '/' });
    await container.start();
    const { NetworkSettings } = await container.inspect();
    const address = Object.values(NetworkSettings.Networks)[0]?.IPAddress ?? '';
    const ready = async () => {
      await waitUntilReady(container, address, exec, { runtime, occupyPort });
      if (adminPassword !== undefined) await exec(askFor(adminPassword));
    };
    const reboot = async () => {
      await container.restart({ t: 0 });
      await ready();
    };
    await ready();
    const hostKey = (await exec('cat /etc/ssh/ssh_host_ed25519_key.pub')).stdout.trim();
    const hostKeyFingerprint = fingerprint(hostKey);
    const facts = {
      id: container.id,
      name,
      address,
      port: 22,
      user: 'root',
      privateKey: keys.private,
      hostKey,
      hostKeyFingerprint,
    };
    const copyIn: LabHost['copyIn'] = async (folder, path) => {
      await exec(`mkdir -p '${path}'`);
      await container.putArchive(tarFolder(folder), { path });
    };
    return { ...facts, exec, copyIn, ready, reboot, stop, [Symbol.asyncDispose]: stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** The files of a folder as a tar, all readable. */
const tarFolder = (folder: string) =>
  spawn('tar', ['-C', folder, '--owner=0', '--group=0', '--mode=a+rX', '-c', '.'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  }).stdout;

/** A command that makes `admin` a user with a password. The first process has made it one without. */
const askFor = (password: string) => {
  const line = `'admin:${password.replaceAll("'", "'\\''")}'`;
  return `printf '%s\\n' ${line} | chpasswd && rm -f /home/admin/.ssh/authorized_keys && echo 'admin ALL=(ALL) ALL' >/etc/sudoers.d/admin`;
};

function ignoreMissing(error: { statusCode?: number }): void {
  if (error.statusCode !== 404) throw error;
}

/** `SHA256:` and the unpadded base64 of the digest of the key's blob, as in OpenSSH. */
function fingerprint(publicKeyLine: string): string {
  const blob = Buffer.from(publicKeyLine.split(' ')[1] ?? '', 'base64');
  return `SHA256:${createHash('sha256').update(blob).digest('base64').replace(/=+$/, '')}`;
}

interface Expected {
  runtime: 'docker' | 'containerd' | '';
  occupyPort: number | undefined;
}

async function waitUntilReady(
  container: Docker.Container,
  address: string,
  exec: LabHost['exec'],
  { runtime, occupyPort }: Expected,
): Promise<void> {
  const checks = [
    { docker: 'docker info', containerd: 'ctr version', '': '' }[runtime],
    occupyPort ? `ss -Hltn "sport = :${occupyPort}" | grep -q LISTEN` : '',
  ].filter(Boolean);
  const isUp = async () => {
    const { State } = await container.inspect();
    if (!State.Running) return { ended: true };
    return (await banner(address)).startsWith('SSH-2.0-') &&
      (checks.length === 0 || (await exec(checks.join(' && '))).exitCode === 0)
      ? { ended: false }
      : undefined;
  };
  const result = await waitFor(isUp, {
    timeoutMs: 60_000,
    intervalMs: 100,
    what: `the host at ${address} to be ready`,
  }).catch(async (error: Error) => {
    const { stdout } = await exec('tail -n 20 /var/log/docker.log /var/log/containerd.log').catch(() => ({
      stdout: '',
    }));
    throw new Error(`${error.message}\n${stdout}`, { cause: error });
  });
  if (result.ended)
    throw new Error(`the host ended: ${(await container.logs({ stdout: true, stderr: true, tail: 20 })).toString()}`);
}

function banner(address: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: address, port: 22, timeout: 2000 });
    socket.once('data', (data) => {
      resolve(data.toString());
      socket.destroy();
    });
    socket.once('timeout', () => socket.destroy(new Error('no banner')));
    socket.once('error', reject);
    socket.once('close', () => reject(new Error('closed without a banner')));
  });
}

async function execIn(
  docker: Docker,
  container: Docker.Container,
  command: string,
  timeoutMs: number,
): Promise<ExecResult> {
  const exec = await container.exec({ Cmd: ['/bin/sh', '-c', command], AttachStdout: true, AttachStderr: true });
  const stream = await exec.start({});
  const output = { stdout: '', stderr: '' };
  const sink = (name: keyof typeof output) => {
    const sinkStream = new PassThrough().setEncoding('utf8');
    return sinkStream.on('data', (chunk: string) => {
      output[name] += chunk;
    });
  };
  const [stdout, stderr] = [sink('stdout'), sink('stderr')];
  docker.modem.demuxStream(stream, stdout, stderr);
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => stream.destroy(new Error(`no end after ${timeoutMs} ms: ${command}`)), timeoutMs);
    stream.once('error', reject);
    stream.once('close', () => clearTimeout(timer));
    stream.once('end', resolve);
  });
  // The stream may end a moment before the engine knows the exit code.
  const done = await waitFor(async () => exec.inspect().then((state) => (state.Running ? undefined : state)), {
    what: `the exit code of ${command}`,
  });
  return { ...output, exitCode: done.ExitCode ?? -1 };
}
