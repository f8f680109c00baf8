import { lookup as systemLookup } from 'node:dns/promises';
import { BlockList, isIP, type LookupFunction } from 'node:net';
import { callbackify } from 'node:util';
import { AppError, type ErrorCode } from '@airdock/core/errors';
import { embeddedIpv4 } from './embedded-ipv4.js';

interface Address {
  address: string;
  family: number;
}

/** Resolves a name to its addresses, as `dns.lookup` does. */
export type Resolve = (name: string) => Promise<Address[]>;

/** Which addresses beyond the public ones a feature may ask, and how a refusal is worded. */
export interface OutboundPolicy {
  /** What a refusal is called. */
  code: ErrorCode;
  /** The key of the configuration that lists what is allowed; named in refusals. */
  key: string;
}

/** How long a name may take to resolve while somebody waits to hear whether it is allowed. */
const resolveMs = 2_000;

/**
 * Never reached unless their network is allowed by address: this machine, link-local with the metadata services of
 * clouds, and what is no host's address.
 */
const refused = new BlockList();
refused.addSubnet('0.0.0.0', 8);
refused.addSubnet('127.0.0.0', 8);
refused.addSubnet('169.254.0.0', 16);
refused.addAddress('100.100.100.200');
refused.addSubnet('192.0.0.0', 24);
refused.addSubnet('224.0.0.0', 3);
refused.addAddress('::', 'ipv6');
refused.addAddress('::1', 'ipv6');
refused.addSubnet('fe80::', 10, 'ipv6');
refused.addSubnet('fec0::', 10, 'ipv6');
refused.addSubnet('ff00::', 8, 'ipv6');
refused.addSubnet('100::', 64, 'ipv6');
refused.addSubnet('fd00:ec2::', 32, 'ipv6');
// Translates to whatever IPv4 address a site has put behind it.
refused.addSubnet('64:ff9b:1::', 48, 'ipv6');

const familyOf = (address: string) => (isIP(address) === 6 ? 'ipv6' : 'ipv4');

/** Whether an address, or one that it leads on to, is one that nobody may be sent to unless it is listed. */
const isRefused = (address: string): boolean =>
  [address, ...embeddedIpv4(address)].some((one) => refused.check(one, familyOf(one)));

/**
 * Where requests may go whose target others have chosen. `allowed`: names (`hooks.site`), their subdomains (`*.site`),
 * addresses and networks (`10.0.0.5`, `10.0.0.0/8`, `fd00::/8`). With any of them everything else is refused; without,
 * all but loopback, link-local and multicast addresses are allowed. Those take an address or a network in the list, a
 * name is not enough. An IPv6 address that stands for an IPv4 address is judged as both.
 */
export class OutboundTargets {
  private readonly names: string[] = [];
  private readonly networks = new BlockList();

  constructor(
    private readonly allowed: readonly string[],
    private readonly policy: OutboundPolicy,
    private readonly resolve: Resolve = (name) => systemLookup(name, { all: true }),
  ) {
    for (const entry of allowed) {
      const [address = '', prefix] = entry.split('/');
      if (isIP(address) === 0) this.names.push(canonical(entry));
      else if (prefix === undefined) this.networks.addAddress(address, familyOf(address));
      else this.networks.addSubnet(address, Number(prefix), familyOf(address));
    }
  }

  /**
   * The URL as it will be used. A name that does not resolve now is good as long as it is not its address that has to
   * be allowed: it is looked at again with every request. Throws the policy's code.
   */
  async check(url: string): Promise<string> {
    const { href, host } = this.parse(url);
    const isNameAllowed = this.isNameAllowed(host);
    if (!isNameAllowed && this.networks.rules.length === 0)
      throw this.forbidden(`${host} is not in ${this.policy.key}`);
    const late = new Promise<undefined>((done) => setTimeout(done, resolveMs, undefined).unref());
    const addresses = isIP(host)
      ? [asAddress(host)]
      : await Promise.race([this.resolve(host).catch(() => undefined), late]);
    if (addresses) this.choose(host, addresses);
    else if (!isNameAllowed)
      throw this.forbidden(`${host} does not resolve, and ${this.policy.key} has only networks for it`);
    return href;
  }

  /** Whether a host is listed by its own name or its own address: somebody has thought of it. */
  isListed(url: string): boolean {
    const { host } = this.parse(url);
    return this.names.includes(host) || this.allowed.includes(host);
  }

  /**
   * The addresses of a URL's host that may be connected to now, at least one. Throws the policy's code, and what the
   * resolver says.
   */
  async addressesOf(url: string): Promise<string[]> {
    const { host } = this.parse(url);
    const addresses = isIP(host) ? [asAddress(host)] : await this.resolve(host);
    return this.choose(host, addresses).map(({ address }) => address);
  }

  /** The parts of an http or https URL. Throws the policy's code for any other, and for one with a password in it. */
  parse(url: string): { href: string; host: string; isSecure: boolean } {
    const target = URL.parse(url);
    if (
      !target ||
      !['http:', 'https:'].includes(target.protocol) ||
      target.username ||
      target.password ||
      target.hostname === ''
    )
      throw this.forbidden('the URL must be http or https, without user and password');
    return {
      href: target.href,
      host: canonical(target.hostname.replace(/^\[|\]$/g, '')),
      isSecure: target.protocol === 'https:',
    };
  }

  /**
   * Throws the policy's code for a host that is an address and may not be connected to: what is an address already is
   * not looked up.
   */
  assertAddress(host: string): void {
    if (isIP(host)) this.choose(host, [asAddress(host)]);
  }

  /** For a connection: gives it the addresses that were checked, and only those. */
  readonly lookup: LookupFunction = (name, options, callback) =>
    callbackify(async () => this.choose(name, await this.resolve(name)))((error, addresses) => {
      if (error || options.all) callback(error, addresses);
      else callback(null, addresses[0].address, addresses[0].family);
    });

  /** Those of the addresses of a host that may be connected to, at least one. */
  private choose(host: string, addresses: Address[]): [Address, ...Address[]] {
    const isNameAllowed = this.isNameAllowed(canonical(host));
    const [first, ...others] = addresses.filter(({ address }) => {
      if (this.networks.check(address, familyOf(address))) return true;
      return isNameAllowed && !isRefused(address);
    });
    if (first) return [first, ...others];
    const what = isIP(host) ? host : `${host} (${addresses.map(({ address }) => address).join(', ')})`;
    throw this.forbidden(
      isNameAllowed
        ? `${what} is this machine, link-local or multicast, and not listed in ${this.policy.key}`
        : `${what} is not in ${this.policy.key}`,
    );
  }

  /** Whether the name is enough, for ordinary addresses. */
  private isNameAllowed(host: string): boolean {
    return (
      this.allowed.length === 0 ||
      this.names.some((name) => (name.startsWith('*.') ? host.endsWith(name.slice(1)) : host === name))
    );
  }

  private forbidden(detail: string): AppError {
    return new AppError(this.policy.code, { detail });
  }
}

const canonical = (name: string): string => name.toLowerCase().replace(/\.$/, '');

const asAddress = (address: string): Address => ({ address, family: isIP(address) });
