/**
 * Package managers of hosts, which somebody else may be using: unattended-upgrades, cloud-init, a colleague, or what a
 * connection that broke has left running.
 */
import { AppError } from '@airdock/core/errors';
import { cleanLine } from '@airdock/core/host/host-text';
import type { SshConnection } from '@airdock/ssh/connection/connection';

/**
 * Of dpkg, apt, rpm, dnf and yum. Those that end in `.pid` say whose they are; the others are locked as in fcntl(2),
 * and are there in any case.
 */
const lockFiles = [
  ...['/var/lib/dpkg/lock-frontend', '/var/lib/dpkg/lock', '/var/lib/apt/lists/lock', '/var/cache/apt/archives/lock'],
  ...['/var/lib/rpm/.rpm.lock', '/usr/lib/sysimage/rpm/.rpm.lock', '/var/run/yum.pid'],
  ...[
    '/var/cache/dnf/metadata_lock.pid',
    '/var/cache/dnf/download_lock.pid',
    '/var/lib/dnf/rpmdb_lock.pid',
    '/var/log/log_lock.pid',
  ],
];

/** What a program says whose lock is taken after we have looked. */
const refusals =
  'could not get lock|unable to (acquire|lock)|is locked by another|exiting as configured by exit_on_lock|transaction lock|frontend lock';

const lockedCode = 75;

/**
 * Runs a program, $2 and what follows, when nobody holds a lock, and again when somebody was faster; waits $1 s at the
 * most. What the program starts may keep its output open for as long as it runs, so that goes through a file.
 * /proc/locks has pids and inodes; its devices are not those of stat(2) on some file systems, so the open files of the
 * process decide. Each second something is printed: who waits for nobody any more ends by it.
 */
const script = `
LC_ALL=C
export LC_ALL
limit=$1
shift
holder() {
  for file in ${lockFiles.join(' ')}; do
    [ -f "$file" ] || continue
    case "$file" in
    *.pid)
      read -r pid _ <"$file" || :
      case "$pid" in '' | *[!0-9]*) continue ;; esac
      read -r stat 2>/dev/null <"/proc/$pid/stat" || continue
      case "\${stat##*) }" in Z*) ;; *) echo "$pid $file"; return ;; esac ;;
    *)
      inode=$(stat -c %i "$file")
      while read -r _ kind _ _ pid at _; do
        [ "\${at##*:}" = "$inode" ] && [ "$kind" != '->' ] || continue
        for open in "/proc/$pid/fd"/*; do
          if [ "$open" -ef "$file" ]; then echo "$pid $file"; return; fi
        done
      done </proc/locks ;;
    esac
  done
}
out=$(mktemp)
trap 'rm -f "$out"' EXIT
waited=0
while :; do
  held=$(holder)
  if [ -z "$held" ]; then
    "$@" >"$out" 2>&1 </dev/null
    code=$?
    if [ "$code" = 0 ] || ! grep -qiE '${refusals}' "$out" || { [ "$waited" -ge "$limit" ] && [ -z "$(holder)" ]; }; then
      tail -c 262144 "$out"
      exit "$code"
    fi
    held=$(holder)
  fi
  if [ "$waited" -ge "$limit" ] && [ -n "$held" ]; then
    command=$(tr '\\0' ' ' 2>/dev/null <"/proc/\${held%% *}/cmdline" | head -c 200)
    echo "$held $command"
    exit ${lockedCode}
  fi
  waited=$((waited + 1))
  echo || exit
  sleep 1
done`;

/**
 * Waits for the locks of the package manager, for so long at the most, and runs it. Throws `host_packages_locked` with
 * who holds which; the exit code is a result.
 */
export async function runPackageManager(
  connection: SshConnection,
  argv: readonly string[],
  lockSeconds: number,
  signal: AbortSignal,
) {
  const result = await connection.exec(['sh', '-c', script, 'sh', String(lockSeconds), ...argv], {
    sudo: true,
    signal,
    stallTimeoutMs: 1_800_000,
  });
  const [, pid, file, command = ''] =
    result.exitCode === lockedCode ? (/^(\d{1,10}) (\/\S{1,100}) ?(.*)$/.exec(result.stdout.trim()) ?? []) : [];
  if (pid !== undefined && file !== undefined)
    throw new AppError('host_packages_locked', {
      detail: `${connection.where}: ${file} is still held after ${lockSeconds} s, by process ${pid}${command ? `: ${cleanLine(command)}` : ''}`,
      pid: Number(pid),
      file,
    });
  return result;
}
