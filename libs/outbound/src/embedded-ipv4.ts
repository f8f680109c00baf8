import { isIPv6 } from 'node:net';

/** The eight groups of an IPv6 address; a zone (`%eth0`) is left out. */
function groupsOf(address: string): number[] {
  const text = address.split('%')[0] ?? '';
  // The last 32 bits may be written as an IPv4 address.
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  const [a = 0, b = 0, c = 0, d = 0] = dotted ? dotted.slice(2).map(Number) : [];
  const hex = dotted ? `${dotted[1]}${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}` : text;
  const [head = '', tail] = hex.split('::');
  const parse = (part: string) => (part === '' ? [] : part.split(':').map((group) => Number.parseInt(group, 16)));
  const [left, right] = [parse(head), parse(tail ?? '')];
  return tail === undefined ? left : [...left, ...Array<number>(8 - left.length - right.length).fill(0), ...right];
}

const ipv4 = (high = 0, low = 0): string => [high >> 8, high & 255, low >> 8, low & 255].join('.');

/**
 * The IPv4 addresses that an IPv6 address leads on to, by the ways that RFC 4291 (mapped, compatible), 2765
 * (translated), 3056 (6to4), 4380 (Teredo: its server and its client), 5214 (ISATAP) and 6052 (NAT64) know; none for
 * others. One of them is enough to reach what must not be reached.
 */
export function embeddedIpv4(address: string): string[] {
  if (!isIPv6(address.split('%')[0] ?? '')) return [];
  const groups = groupsOf(address);
  const [a, b, c, d, e, f, g, h] = groups;
  const last = ipv4(g, h);
  const found: string[] = [];
  const leadingZeros = (count: number) => groups.slice(0, count).every((group) => group === 0);
  if (leadingZeros(5) && (f === 0xffff || f === 0)) found.push(last);
  if (leadingZeros(4) && e === 0xffff && f === 0) found.push(last);
  if (a === 0x64 && b === 0xff9b) found.push(last);
  if (a === 0x2002) found.push(ipv4(b, c));
  if (a === 0x2001 && b === 0) found.push(ipv4(c, d), ipv4((g ?? 0) ^ 0xffff, (h ?? 0) ^ 0xffff));
  if ((e === 0 || e === 0x200) && f === 0x5efe) found.push(last);
  return found;
}
