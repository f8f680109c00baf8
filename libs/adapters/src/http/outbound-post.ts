import { lookup as systemLookup } from 'node:dns/promises';
import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { BlockList, isIP, type LookupFunction } from 'node:net';
import { callbackify } from 'node:util';
import { AppError } from '@airdock/core/errors';
import { rootMessage } from './root-message.js';

interface Address {
  address: string;
  family: number;
}

type Resolve = (name: string) => Promise<Address[]>;

export interface PostOptions {
  headers: Record<string, string>;
  body: string;
  /** For all of it: resolving the name, connecting, and the answer. */
  timeoutMs: number;
  /** Of the answer's body; what follows is not read. */
  maxAnswerBytes: number;
  signal: AbortSignal;
}

/** How a request went. Without `status` there was no answer, and `error` says why. */
export type PostOutcome = { status: number; body: string; isCut: boolean } | { error: string };

/** How long a name may take to resolve while somebody waits to hear whether it is allowed. */
const resolveMs = 2_000;

/** Never reached unless their network is allowed by address: link-local with the metadata services of clouds, and what is no host's address. */
const refused = new BlockList();
refused.addSubnet('0.0.0.0', 8);
refused.addSubnet('169.254.0.0', 16);
refused.addAddress('100.100.100.200');
refused.addSubnet('224.0.0.0', 3);
refused.addAddress('::', 'ipv6');
refused.addSubnet('fe80::', 10, 'ipv6');
refused.addSubnet('ff00::', 8, 'ipv6');
refused.addAddress('fd00:ec2::254', 'ipv6');
refused.addSubnet('64:ff9b::a9fe:0', 112, 'ipv6');

const familyOf = (address: string) => (isIP(address) === 6 ? 'ipv6' : 'ipv4');

/**
 * Sends POSTs to addresses that others have chosen, from a network that they are not in. Only http and https, no redirects, no proxies of the environment, bounded
 * in time and size, and only to what is allowed: the address that is checked is the one that is connected to, whatever the name resolves to next time.
 *
 * `allowed`: names (`hooks.site`), their subdomains (`*.site`), addresses and networks (`10.0.0.5`, `10.0.0.0/8`, `fd00::/8`). With any of them everything else is
 * refused; without, all but link-local and multicast addresses are allowed. Those take an address or a network in the list, a name is not enough.
 */
export class OutboundPost {
  private readonly names: string[] = [];
  private readonly networks = new BlockList();

  constructor(
    private readonly allowed: readonly string[],
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
   * The URL as it will be used. A name that does not resolve now is good as long as it is not its address that has to be allowed: it is looked at again with every
   * request. Throws `webhook_target_forbidden`.
   */
  async check(url: string): Promise<string> {
    const { href, host } = parse(url);
    const isNameAllowed = this.isNameAllowed(host);
    if (!isNameAllowed && this.networks.rules.length === 0) throw forbidden(`${host} is not in airdock.webhooks.allowedHosts`);
    const late = new Promise<undefined>((done) => setTimeout(done, resolveMs, undefined).unref());
    const addresses = isIP(host) ? [asAddress(host)] : await Promise.race([this.resolve(host).catch(() => undefined), late]);
    if (addresses) this.choose(host, addresses);
    else if (!isNameAllowed) throw forbidden(`${host} does not resolve, and airdock.webhooks.allowedHosts has only networks for it`);
    return href;
  }

  /** One request. Never throws. A status that came counts, also when the rest of the answer does not come in time. */
  async post(url: string, { headers, body, timeoutMs, maxAnswerBytes, signal }: PostOptions): Promise<PostOutcome> {
    const timeout = AbortSignal.timeout(timeoutMs);
    try {
      const { href, host, isSecure } = parse(url);
      // The system does not resolve what is an address already.
      if (isIP(host)) this.choose(host, [asAddress(host)]);
      const options = { method: 'POST', headers, agent: false as const, lookup: this.lookup, signal: AbortSignal.any([timeout, signal]) };
      return await new Promise((resolve, reject) => {
        const request = (isSecure ? httpsRequest : httpRequest)(href, options);
        request.once('error', reject);
        request.once('response', (response) => {
          const chunks: Buffer[] = [];
          let size = 0;
          const end = (isCut: boolean) => {
            const text = Buffer.concat(chunks).subarray(0, maxAnswerBytes).toString('utf8').replaceAll('\0', '\uFFFD');
            resolve({ status: response.statusCode ?? 0, body: text, isCut });
            request.destroy();
          };
          response.on('data', (chunk: Buffer) => {
            chunks.push(chunk);
            size += chunk.length;
            if (size > maxAnswerBytes) end(true);
          });
          response.once('end', () => end(false));
          response.on('error', () => end(true));
        });
        request.end(body);
      });
    } catch (error) {
      if (timeout.aborted) return { error: `no answer within ${timeoutMs / 1000} s` };
      return { error: error instanceof AppError ? error.message : `no answer: ${(error as { code?: string }).code ?? rootMessage(error)}` };
    }
  }

  private readonly lookup: LookupFunction = (name, options, callback) =>
    callbackify(async () => this.choose(name, await this.resolve(name)))((error, addresses) => {
      if (error || options.all) callback(error, addresses);
      else callback(null, addresses[0].address, addresses[0].family);
    });

  /** Those of the addresses of a host that may be connected to, at least one. Throws `webhook_target_forbidden`. */
  private choose(host: string, addresses: Address[]): [Address, ...Address[]] {
    const isNameAllowed = this.isNameAllowed(canonical(host));
    const [first, ...others] = addresses.filter(({ address }) => {
      if (this.networks.check(address, familyOf(address))) return true;
      return isNameAllowed && !refused.check(address, familyOf(address));
    });
    if (first) return [first, ...others];
    const what = isIP(host) ? host : `${host} (${addresses.map(({ address }) => address).join(', ')})`;
    throw forbidden(isNameAllowed ? `${what} is a link-local or multicast address` : `${what} is not in airdock.webhooks.allowedHosts`);
  }

  /** Whether the name is enough, for ordinary addresses. */
  private isNameAllowed(host: string): boolean {
    return this.allowed.length === 0 || this.names.some((name) => (name.startsWith('*.') ? host.endsWith(name.slice(1)) : host === name));
  }
}

const forbidden = (detail: string) => new AppError('webhook_target_forbidden', { detail });

const canonical = (name: string): string => name.toLowerCase().replace(/\.$/, '');

const asAddress = (address: string): Address => ({ address, family: isIP(address) });

function parse(url: string): { href: string; host: string; isSecure: boolean } {
  const target = URL.parse(url);
  if (!target || !['http:', 'https:'].includes(target.protocol) || target.username || target.password)
    throw forbidden('the URL must be http or https, without user and password');
  return { href: target.href, host: canonical(target.hostname.replace(/^\[|\]$/g, '')), isSecure: target.protocol === 'https:' };
}
