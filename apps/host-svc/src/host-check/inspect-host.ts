import type { SshConnection } from '@airdock/adapters/ssh/connection';
import type { HostFacts } from '../host/host.schema.js';
import type { Check } from './host-check.schema.js';

/** What one look at a host found. */
export interface Inspection {
  facts: HostFacts;
  checks: Check[];
  hasDocker: boolean;
  isPortTaken: boolean;
}

// Read by `sh -s`, with the port as $1. /proc and df are everywhere; ss and lsof are not. State 0A is LISTEN.
const script = `
. /etc/os-release 2>/dev/null
echo "os=\${ID:-unknown}"
echo "osVersion=\${VERSION_ID:-unknown}"
echo "machine=$(uname -m)"
echo "cpus=$(getconf _NPROCESSORS_ONLN)"
echo "memoryKiB=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)"
echo "diskFreeKiB=$(df -Pk /var/lib 2>/dev/null | awk 'NR==2 {print $4}')"
echo "swapKiB=$(sed -n 's/^SwapTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)"
echo "docker=$(docker version --format '{{.Server.Version}}' 2>/dev/null)"
hex=$(printf '%04X' "$1")
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v port=":$hex" '$4 == "0A" && substr($2, length($2) - 4) == port {found = 1} END {print "portTaken=" (found ? "yes" : "no")}'
`;

const architectures: Record<string, string> = { x86_64: 'amd64', aarch64: 'arm64' };
const supportedOs = ['debian', 'ubuntu', 'rhel', 'centos', 'rocky', 'almalinux'];
const minDiskFreeBytes = 2 * 1024 ** 3;
const minMemoryBytes = 1 * 1024 ** 3;

/**
 * Looks at a host: operating system, Docker, the registry's port, disk, memory. `ownsPort` says that the listener on the port is our own tunnel.
 * Changes nothing. Throws only when the connection breaks.
 */
export async function inspectHost(connection: SshConnection, port: number, ownsPort: boolean, seenAt: string, signal?: AbortSignal): Promise<Inspection> {
  const output = await connection.run(['sh', '-s', String(port)], { stdin: script, sudo: true, signal });
  const values = new Map(output.split('\n').map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
  const text = (key: string) => values.get(key)?.slice(0, 100) ?? '';
  // A host may say anything.
  const count = (key: string) => Math.max(0, Math.min(Number.parseInt(text(key), 10) || 0, 1_000_000_000_000));
  const bytes = (key: string) => count(key) * 1024;
  const facts: HostFacts = {
    os: text('os'),
    osVersion: text('osVersion'),
    architecture: architectures[text('machine')] ?? text('machine'),
    cpus: count('cpus'),
    memoryBytes: bytes('memoryKiB'),
    diskFreeBytes: bytes('diskFreeKiB'),
    dockerVersion: text('docker') || null,
    seenAt,
  };
  const isPortTaken = text('portTaken') === 'yes' && !ownsPort;
  const gib = (value: number) => `${(value / 1024 ** 3).toFixed(1)} GiB`;
  const check = (name: string, ok: boolean, seen: string, nextStep: string, otherwise: Check['status'] = 'failure'): Check => ({
    name,
    status: ok ? 'pass' : otherwise,
    seen,
    nextStep: ok ? null : nextStep,
  });
  const checks = [
    check('os', supportedOs.includes(facts.os), `${facts.os} ${facts.osVersion}`, `Supported are ${supportedOs.join(', ')}.`, 'warning'),
    check(
      'docker',
      facts.dockerVersion !== null,
      facts.dockerVersion ?? 'no answer from docker',
      'Install Docker, or see why `docker info` fails on the host.',
    ),
    check(
      `port ${port}`,
      !isPortTaken,
      isPortTaken ? 'another program listens' : ownsPort ? 'our tunnel' : 'free',
      `Find the program with \`ss -ltnp sport = :${port}\` on the host and stop it.`,
    ),
    check('disk', facts.diskFreeBytes >= minDiskFreeBytes, `${gib(facts.diskFreeBytes)} free below /var/lib`, `Free at least ${gib(minDiskFreeBytes)}.`),
    check('memory', facts.memoryBytes >= minMemoryBytes, gib(facts.memoryBytes), 'Kubernetes nodes need more memory.', 'warning'),
    check('swap', bytes('swapKiB') === 0, bytes('swapKiB') === 0 ? 'off' : gib(bytes('swapKiB')), 'Switch swap off for Kubernetes: swapoff -a.', 'warning'),
  ];
  return { facts, checks, hasDocker: facts.dockerVersion !== null, isPortTaken };
}
