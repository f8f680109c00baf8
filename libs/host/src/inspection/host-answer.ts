import type { HeldPort, HostPorts } from '@airdock/core/host/held-port';
import { type PackageFamily, packageFamily } from '@airdock/core/host/package-list';

/** What a host is. */
export interface HostFacts {
  os: string;
  osVersion: string;
  /** Whose packages it takes; null when neither. */
  osFamily: PackageFamily | null;
  /** The program found: apt-get, dnf, yum, zypper or apk. */
  packageManager: string | null;
  /** As images name it: amd64, arm64. */
  architecture: string;
  cpus: number;
  memoryBytes: number;
  diskFreeBytes: number;
  dockerVersion: string | null;
  /** Of the one that answers at /run/containerd, also where Docker uses it. */
  containerdVersion: string | null;
  seenAt: string;
}

/** What `hostScript` has printed. */
export interface HostAnswer {
  /** The first value; empty without one. */
  text(key: string): string;
  all(key: string): string[];
  count(key: string): number | undefined;
  bytes(keyOfKiB: string): number | undefined;
}

/** The names of images for the machines that they run on, by what `uname -m` says. */
export const architectures: Record<string, string> = { x86_64: 'amd64', aarch64: 'arm64' };
/** Why a host cannot hold ports whose sshd binds no sockets. */
export const noSockets = 'its sshd does not allow stream local forwarding';
const maxLines = 5000;
const maxValueLength = 100;

/** Lines and values are bounded and free of control characters, since a host may say anything. */
export function parseAnswer(output: string): HostAnswer {
  const values = new Map<string, string[]>();
  for (const line of output.split('\n', maxLines)) {
    const at = line.indexOf('=');
    const value = line
      .slice(at + 1, at + 1 + maxValueLength)
      .replaceAll(/\p{C}/gu, '')
      .trim();
    if (at <= 0 || value === '') continue;
    const key = line.slice(0, at);
    const known = values.get(key);
    if (known) known.push(value);
    else values.set(key, [value]);
  }
  const all = (key: string) => values.get(key) ?? [];
  const text = (key: string) => all(key)[0] ?? '';
  const count = (key: string) => (/^\d{1,12}$/.test(text(key)) ? Number(text(key)) : undefined);
  const bytes = (key: string) => {
    const kibibytes = count(key);
    return kibibytes === undefined ? undefined : kibibytes * 1024;
  };
  return { all, text, count, bytes };
}

/** What the host is, as far as it says so. */
export function factsOf(values: HostAnswer, seenAt: string): HostFacts {
  const os = values.text('os') || 'unknown';
  return {
    os,
    osVersion: values.text('osVersion') || 'unknown',
    osFamily: packageFamily(os, values.text('osLike')) ?? null,
    packageManager: values.text('packageManager') || null,
    architecture: architectures[values.text('machine')] ?? (values.text('machine') || 'unknown'),
    cpus: values.count('cpus') ?? 0,
    memoryBytes: values.bytes('memoryKiB') ?? 0,
    diskFreeBytes: values.bytes('diskFreeKiB') ?? 0,
    dockerVersion: values.text('docker') || null,
    containerdVersion: values.text('containerd') || null,
    seenAt,
  };
}

/** Which ports the host holds for us, and whether it can. */
export function portsOf(values: HostAnswer): HostPorts {
  const held = values.all('holds').flatMap((line): HeldPort[] => {
    const [, name, port] = /^(registry|packages) (\d{1,5})$/.exec(line) ?? [];
    return name === undefined ? [] : [{ name: name as HeldPort['name'], port: Number(port) }];
  });
  const [proxyd] = /^(?:\/usr)?\/lib\/systemd\/systemd-socket-proxyd$/.exec(values.text('proxyd')) ?? [];
  const userId = values.count('userId');
  const isForbidden =
    ['no', 'local'].includes(values.text('allowstreamlocalforwarding')) || values.text('disableforwarding') === 'yes';
  const why = !values.text('systemd')
    ? 'systemd is not its first process'
    : !proxyd || userId === undefined
      ? 'it has no systemd-socket-proxyd'
      : isForbidden
        ? noSockets
        : '';
  const systemdVersion = Number.parseInt(values.text('systemdVersion'), 10) || 0;
  const holder =
    why || !proxyd || userId === undefined
      ? undefined
      : { proxyd, userId, systemdVersion, hasIpv6: values.text('ipv6') === 'yes' };
  return { holder, why, held };
}

/** Seconds that the host's clock is ahead of ours. Undefined when its `date` says nothing that can be used. */
export function offsetOf(said: string, oursMs: number): number | undefined {
  const [, seconds, fraction] = /^(\d{1,12})(?:\.(\d{1,9}))?/.exec(said) ?? [];
  // busybox knows no %N: then the middle of the second is the best guess.
  return seconds === undefined ? undefined : Number(`${seconds}.${fraction ?? '5'}`) - oursMs / 1000;
}
