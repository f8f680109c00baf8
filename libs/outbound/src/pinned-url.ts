import { isIP } from 'node:net';
import type { OutboundTargets } from './outbound-targets.js';

const mark = '#at=';

/**
 * A URL together with the addresses that its host has now and that may be connected to, in its fragment, which is never
 * sent: whoever gets it connects there, whatever the name resolves to by then. Throws as `OutboundTargets.addressesOf`
 * does.
 */
export async function pinUrl(targets: OutboundTargets, url: string): Promise<string> {
  const addresses = await targets.addressesOf(url);
  return `${url.split('#')[0]}${mark}${addresses.join(',')}`;
}

/** The addresses in a URL that `pinUrl` made; none in others. */
export function addressesIn(url: URL): { address: string; family: number }[] {
  if (!url.hash.startsWith(mark)) return [];
  const texts = url.hash.slice(mark.length).split(',');
  return texts.map((address) => ({ address, family: isIP(address) })).filter(({ family }) => family !== 0);
}
