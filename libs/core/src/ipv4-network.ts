import { AppError } from './errors.js';

/** A network of IPv4, its first and last address as numbers. */
interface Ipv4Network {
  first: number;
  last: number;
}

// Without leading zeros, which some readers take for octal and Kubernetes refuses.
const addressPattern = /^(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})$/;
const networkPattern = /^([\d.]+)\/(0|[1-9]\d?)$/;

function addressOf(text: string): number | undefined {
  const parts = addressPattern.exec(text)?.slice(1).map(Number);
  return parts?.every((part) => part <= 255) ? parts.reduce((sum, part) => sum * 256 + part, 0) : undefined;
}

/** Reads `10.20.0.0/16`. Bits of the host must be 0. Throws `cluster_network_invalid`. */
export function parseIpv4Network(text: string): Ipv4Network {
  const [, address = '', prefix = '33'] = networkPattern.exec(text) ?? [];
  const first = addressOf(address);
  const size = Number(prefix) <= 32 ? 2 ** (32 - Number(prefix)) : undefined;
  const refuse = (why: string) => new AppError('cluster_network_invalid', { detail: `'${text.slice(0, 60)}' ${why}` });
  if (first === undefined || size === undefined) throw refuse('is not a network like 10.20.0.0/16');
  if (first % size !== 0) throw refuse('begins in the middle of a network of this size');
  return { first, last: first + size - 1 };
}

/**
 * Throws `cluster_network_invalid` when the networks of pods and services overlap, or one of them holds the address of
 * a host: packets to it would stay in the cluster. Hosts that are given by name cannot be told.
 */
export function assertNetworksApart(
  pods: string,
  services: string,
  hosts: readonly { name: string; address: string }[],
): void {
  const networks = [
    { what: 'pods', text: pods, ...parseIpv4Network(pods) },
    { what: 'services', text: services, ...parseIpv4Network(services) },
  ] as const;
  const [first, second] = networks;
  if (first.first <= second.last && second.first <= first.last)
    throw new AppError('cluster_network_invalid', {
      detail: `the networks of pods (${pods}) and services (${services}) overlap`,
    });
  for (const { name, address } of hosts) {
    const own = addressOf(address);
    const holder =
      own === undefined ? undefined : networks.find((network) => network.first <= own && own <= network.last);
    if (holder)
      throw new AppError('cluster_network_invalid', {
        detail: `the network of ${holder.what} (${holder.text}) holds ${name}, ${address}`,
      });
  }
}
