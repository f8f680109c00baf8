import type { LabHost } from '@airdock/testing/lab/host';
import { out } from './hosts.js';

/**
 * Cuts a host off from everything but connections that come to it, as those of the DU do, and the hosts named.
 * Connections that the host, or a container on it, begins to anywhere else are dropped and counted.
 */
export async function cutOff(host: LabHost, others: readonly LabHost[] = []): Promise<void> {
  const peers = others
    .filter(({ address }) => address !== host.address)
    .map(({ address }) => `iptables -A OUTPUT -d ${address} -j ACCEPT`);
  // What is neither new nor known is the end of a connection that came from outside.
  const rules = (table: string) => [
    `${table} -A OUTPUT ! -o lo -m conntrack --ctstate NEW -j DROP`,
    `${table} -I FORWARD -m conntrack --ctstate NEW -j DROP`,
  ];
  // A bridge tells its own link of multicast groups; that goes no further.
  const own = 'iptables -A OUTPUT -p igmp -d 224.0.0.0/24 -j ACCEPT';
  await out(host, ['iptables -F OUTPUT', own, ...peers, ...rules('iptables'), ...rules('ip6tables')].join(' && '));
}

/** Packets of connections that the host has tried to begin elsewhere since `cutOff`. */
export async function triedElsewhere(host: LabHost): Promise<number> {
  const listing = await out(
    host,
    'for table in iptables ip6tables; do $table -nvxL OUTPUT; $table -nvxL FORWARD; done',
  );
  const dropped = listing.split('\n').filter((line) => / DROP .*ctstate NEW/.test(line));
  if (dropped.length !== 4) throw new Error(`${host.name} is not cut off:\n${listing}`);
  return dropped.reduce((sum, line) => sum + Number(line.trim().split(/\s+/)[0]), 0);
}
