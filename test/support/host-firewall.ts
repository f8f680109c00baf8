import type { LabHost } from '@airdock/testing/lab/host';
import { out } from './hosts.js';

/**
 * Cuts a host off from everything but what comes to it, the DU's SSH connections that is, and the hosts named. What it tries to send elsewhere is dropped and
 * counted.
 */
export async function cutOff(host: LabHost, others: readonly LabHost[] = []): Promise<void> {
  const rules = [
    '-o lo -j ACCEPT',
    '-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT',
    ...others.filter(({ address }) => address !== host.address).map(({ address }) => `-d ${address} -j ACCEPT`),
    '-j DROP',
  ];
  await out(host, ['iptables -F OUTPUT', ...rules.map((rule) => `iptables -A OUTPUT ${rule}`), 'iptables -I FORWARD -j DROP'].join(' && '));
}

/** Packets that the host, or a container on it, has tried to send elsewhere since `cutOff`. */
export async function triedElsewhere(host: LabHost): Promise<number> {
  const listing = await out(host, 'iptables -nvxL OUTPUT; iptables -nvxL FORWARD');
  const dropped = listing.split('\n').filter((line) => / DROP /.test(line) && !line.startsWith('Chain'));
  return dropped.reduce((sum, line) => sum + Number(line.trim().split(/\s+/)[0]), 0);
}
