/**
 * The file system of the lab's hosts: Debian with sshd, Docker, dnf and systemd, made once per machine. What differs
 * between hosts is `hostFiles` and settings.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, existsSync } from 'node:fs';
import { copyFile, mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { findProgram } from '../servers.js';
import { type LabEngine, labCacheDir } from './engine.js';
import { followOutput } from './images.js';
import type { Log } from './owner.js';
import { waitForLock } from './owner.js';

const run = promisify(execFile);
const suite = 'bookworm';
const packages = [
  'openssh-server',
  'docker.io',
  'iproute2',
  'iptables',
  'ca-certificates',
  'curl',
  'procps',
  'sudo',
  'dnf',
  'rpm',
  'systemd',
  'systemd-sysv',
];
/** What makes Docker, and is taken off hosts without it. Their archives are kept, for package repositories. */
export const dockerPackages = ['docker.io', 'containerd', 'runc', 'tini'];
/** Not needed to run, and a third of the size. Host keys of the image would be the same on every host. */
const superfluous = [
  'var/cache/apt',
  'var/lib/apt/lists',
  'var/log',
  'usr/share/doc',
  'usr/share/man',
  'usr/share/locale',
  'etc/ssh/ssh_host_*',
];

/** Started and restarted as on a Debian without systemd. The daemon's log is in /var/log. */
const serviceScript = (name: string, daemon: string, socket: string, question: string) => `#!/bin/sh
### BEGIN INIT INFO
# Provides: ${name}
# Required-Start: $local_fs
# Required-Stop: $local_fs
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
### END INIT INFO
PATH=/usr/sbin:/usr/bin:/sbin:/bin
pidfile=/run/airdock-lab-${name}.pid
log=/var/log/${name}.log
OPTS=
[ ! -r /etc/default/${name} ] || . /etc/default/${name}
answers() { [ -S ${socket} ] && ${question} >/dev/null 2>&1; }
# One that has ended stays a zombie while its parent, perhaps this script, lives.
lives() { [ -r "/proc/$1/status" ] && ! grep -q '^State:.*Z' "/proc/$1/status"; }
start() {
  ! answers || return 0
  setsid ${daemon} $OPTS >>"$log" 2>&1 </dev/null &
  echo $! >"$pidfile"
  for _ in $(seq 300); do
    ! answers || return 0
    lives "$(cat "$pidfile")" || break
    sleep 0.1
  done
  tail -n 3 "$log"
  return 1
}
stop() {
  pid=$(cat "$pidfile" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 300); do
    lives "$pid" || return 0
    sleep 0.1
  done
  kill -9 "$pid"
}
case "$1" in
start) start ;;
stop) stop ;;
restart) stop; start ;;
*) exit 2 ;;
esac
`;

/**
 * The first process of a host. Its settings come as environment variables, see `startHost`.
 * A listener on AIRDOCK_OCCUPY_PORT plays the program that already uses Airdock's port.
 */
const initScript = `#!/bin/sh
set -e
mkdir -p /run/sshd
for user in root admin guest; do
  id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$user"
  home=$(getent passwd "$user" | cut -d: -f6)
  install -d -m 700 -o "$user" "$home/.ssh"
  printf '%s\\n' "$AIRDOCK_AUTHORIZED_KEY" >"$home/.ssh/authorized_keys"
done
echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin
ssh-keygen -A >/dev/null
if [ -n "$AIRDOCK_OCCUPY_PORT" ]; then
  perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1", LocalPort => $ARGV[0], ReuseAddr => 1) or die $@; close $c while $c = $s->accept' "$AIRDOCK_OCCUPY_PORT" &
fi
# What is done once: a reboot must find the host as it was.
if [ ! -e /airdock-lab/prepared ]; then
  case "$AIRDOCK_RUNTIME" in
  containerd) dpkg --purge docker.io tini >/dev/null 2>&1 || true ;;
  '') dpkg --purge ${dockerPackages.join(' ')} >/dev/null 2>&1 || true
    rm -rf /usr/bin/docker /usr/sbin/dockerd /usr/bin/containerd /etc/docker /etc/containerd ;;
  esac
  cp /airdock-lab/docker /airdock-lab/containerd /etc/init.d/
  echo "OPTS=--cgroup-parent=$AIRDOCK_CGROUP_PARENT" >/etc/default/docker
  if [ -n "$AIRDOCK_OS_RELEASE" ]; then
    rm -f /etc/os-release
    printf '%s\\n' "$AIRDOCK_OS_RELEASE" >/etc/os-release
  fi
  : >/airdock-lab/prepared
fi
[ -z "$AIRDOCK_SYSTEMD" ] || exec /airdock-lab/boot
if command -v dockerd >/dev/null; then
  service docker start >/dev/null &
elif command -v containerd >/dev/null; then
  service containerd start >/dev/null &
fi
# What a test has installed starts with the host, too.
[ ! -x /etc/init.d/kubelet ] || service kubelet start >/dev/null &
exec /usr/sbin/sshd -D -e
`;

/** Units that a container cannot run, or that would fight over the machine's devices. */
const maskedUnits = [
  'systemd-resolved',
  'systemd-udevd',
  'console-getty',
  'systemd-modules-load',
  'systemd-logind',
].map((name) => `${name}.service`);
maskedUnits.push('getty.target', 'sys-kernel-debug.mount', 'sys-kernel-tracing.mount');

/**
 * What a real boot would have done before the first process, which systemd is. The cgroup tree is the host's own and
 * comes read-only.
 */
const bootScript = `#!/bin/sh
set -e
mount --make-rshared /
for tree in /sys /sys/fs/cgroup /sys/fs/cgroup/*; do
  ! mountpoint -q "$tree" || mount -o remount,bind,rw "$tree"
done
systemctl mask ${maskedUnits.join(' ')} >/dev/null 2>&1
# Its units are the services of this host.
rm -f /etc/init.d/docker /etc/init.d/containerd /etc/default/docker
systemctl enable ssh.service >/dev/null 2>&1
unset AIRDOCK_AUTHORIZED_KEY AIRDOCK_OS_RELEASE AIRDOCK_CGROUP_PARENT
exec /sbin/init
`;

/** What every host gets on top of the image. */
export const hostFiles = [
  { name: 'airdock-lab/boot', content: bootScript },
  { name: 'init.sh', content: initScript },
  { name: 'airdock-lab/docker', content: serviceScript('docker', 'dockerd', '/run/docker.sock', 'docker version') },
  {
    name: 'airdock-lab/containerd',
    content: serviceScript('containerd', 'containerd', '/run/containerd/containerd.sock', 'ctr version'),
  },
];

const recipe = createHash('sha256')
  .update(JSON.stringify([suite, packages, superfluous, dockerPackages]))
  .digest('hex')
  .slice(0, 12);
/** The image that hosts are started from. */
export const hostImage = `airdock-lab/root:${recipe}`;

/**
 * Makes `hostImage` in the engine if it is not there. The first time on a machine this runs debootstrap, which takes a
 * minute and needs the Debian mirror that the machine's apt uses; after that the file system comes from the cache.
 */
export async function ensureHostImage(engine: LabEngine, log?: Log): Promise<string> {
  const exists = () =>
    engine.docker.listImages({ filters: { reference: [hostImage] } }).then((images) => images.length > 0);
  if (await exists()) return hostImage;
  // Two runs at once make it once.
  await using _lock = await waitForLock('rootfs', 1_200_000);
  if (await exists()) return hostImage;
  const archive = await ensureArchive(log);
  log?.('importing the file system of the lab hosts');
  await followOutput(
    engine.docker,
    await engine.docker.importImage(createReadStream(archive), { repo: 'airdock-lab/root', tag: recipe }),
  );
  await removeOlderImages(engine);
  return hostImage;
}

async function ensureArchive(log?: Log): Promise<string> {
  const dir = labCacheDir();
  const archive = join(dir, `root-${recipe}.tar`);
  if (existsSync(archive)) return archive;
  await mkdir(dir, { recursive: true });
  // What older recipes and interrupted runs left. Mounts of an interrupted debootstrap went with its namespace.
  for (const name of await readdir(dir))
    if (name.startsWith('root-')) await rm(join(dir, name), { recursive: true, force: true });
  const root = join(dir, `root-${recipe}.new`);
  log?.('making the file system of the lab hosts with debootstrap, once on this machine; takes a minute');
  await debootstrap(root);
  await keepDockerArchives(join(root, 'var/cache/apt/archives'));
  await Promise.all(superfluous.map((path) => run('sh', ['-c', `rm -rf "$1"/${path}`, 'sh', root])));
  await mkdir(join(root, 'var/log'), { recursive: true });
  await mkdir(join(root, 'var/cache/apt/archives/partial'), { recursive: true });
  await mkdir(join(root, 'var/lib/apt/lists/partial'), { recursive: true });
  const unfinished = `${archive}.new`;
  await run('tar', ['-C', root, '--numeric-owner', '-cf', unfinished, '.'], { timeout: 120_000 });
  await rename(unfinished, archive);
  await rm(root, { recursive: true, force: true });
  return archive;
}

/** Where the archives of `dockerPackages` are; `ensureHostImage` has put them there. */
export const dockerArchivesDir = (): string => join(labCacheDir(), `root-${recipe}.packages`);

async function keepDockerArchives(from: string): Promise<void> {
  await mkdir(dockerArchivesDir(), { recursive: true });
  for (const name of await readdir(from))
    if (dockerPackages.includes(name.split('_')[0] ?? ''))
      await copyFile(join(from, name), join(dockerArchivesDir(), name));
}

async function debootstrap(root: string): Promise<void> {
  const program = findProgram('debootstrap');
  if (!program)
    throw new Error('the Debian package debootstrap is missing, which makes the file system of the lab hosts');
  const mirror = await debianMirror();
  const args = [
    program,
    '--variant=minbase',
    `--include=${packages.join(',')}`,
    suite,
    root,
    ...(mirror ? [mirror] : []),
  ];
  // Its own namespaces: when this process dies, all that debootstrap started dies, and what it mounted in the new root
  // is gone.
  const command = ['--pdeathsig', 'KILL', 'unshare', '--mount', '--pid', '--mount-proc', '--kill-child', ...args];
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin`, LANG: 'C.UTF-8' };
  await run('setpriv', command, { timeout: 1_200_000, maxBuffer: 64 * 1024 * 1024, env }).catch(
    (error: { stdout?: string }) => {
      throw new Error(`debootstrap failed: ${error.stdout?.slice(-2000)}`, { cause: error });
    },
  );
}

/** The mirror that apt uses on this machine, e.g. one of the site; undefined leaves it to debootstrap. */
async function debianMirror(): Promise<string | undefined> {
  const dir = '/etc/apt/sources.list.d';
  const extra = (await readdir(dir).catch(() => [])).map((name) => join(dir, name));
  for (const path of ['/etc/apt/sources.list', ...extra]) {
    const text = await readFile(path, 'utf8').catch(() => '');
    const url = /^(?:URIs:|deb\s+(?:\[[^\]]*\]\s+)?)\s*(https?:\/\/\S+\/debian)\/?(?:\s|$)/m.exec(text)?.[1];
    if (url) return url;
  }
  return undefined;
}

async function removeOlderImages(engine: LabEngine): Promise<void> {
  const images = await engine.docker.listImages({ filters: { reference: ['airdock-lab/root'] } });
  // One that a host of another run uses cannot be removed, and goes the next time.
  for (const { Id, RepoTags } of images)
    if (!RepoTags?.includes(hostImage))
      await engine.docker
        .getImage(Id)
        .remove()
        .catch(() => undefined);
}
