import type { LabHost } from '@airdock/testing/lab/host';
import { waitFor } from '@airdock/testing/servers';
import { out } from './hosts.js';

/** A place where a program on a host waits. */
export interface HostGate {
  /** The next program that comes waits; those after it pass. */
  shut(): Promise<void>;
  /** Resolves when a program waits. */
  reached(): Promise<void>;
  open(): Promise<void>;
}

/**
 * Puts a gate before a program on a host: it waits when its arguments match a pattern of the shell. With `midway` it
 * first takes 100 kB of its standard input. A reboot opens the gate.
 */
export async function installGate(
  host: LabHost,
  program: string,
  pattern: string,
  { midway = false } = {},
): Promise<HostGate> {
  const run = midway ? `{ head -c 100000; hold; cat; } | ${program}.real "$@"; exit` : 'hold';
  // Only one can make the folder inside.
  const script = `#!/bin/sh
hold() { while [ -d /run/gate ]; do sleep 0.1; done; }
case "$*" in ${pattern}) if [ -d /run/gate ] && mkdir /run/gate/held 2>/dev/null; then ${run}; fi ;; esac
exec ${program}.real "$@"
`;
  await out(host, `mv ${program} ${program}.real; cat >${program} <<'END'\n${script}END\nchmod 755 ${program}`);
  return {
    shut: () => out(host, 'mkdir /run/gate').then(() => undefined),
    reached: async () => {
      const isHeld = async () => (await host.exec('[ -d /run/gate/held ]')).exitCode === 0;
      await waitFor(isHeld, { what: `${program} ${pattern} on ${host.name}`, timeoutMs: 90_000, intervalMs: 200 });
    },
    open: () => out(host, 'rm -rf /run/gate').then(() => undefined),
  };
}
