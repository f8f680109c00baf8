import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { AppError } from '@airdock/core/errors';
import { OutboundTargets, type Resolve } from './outbound-targets.js';
import { rootMessage } from './root-message.js';

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

/**
 * Sends POSTs to addresses that others have chosen, from a network that they are not in. Only http and https, no redirects, no proxies of the environment, bounded
 * in time and size, and only where `OutboundTargets` says: the address that is checked is the one that is connected to, whatever the name resolves to next time.
 */
export class OutboundPost {
  private readonly targets: OutboundTargets;

  /** @param allowed as `OutboundTargets` takes it */
  constructor(allowed: readonly string[], resolve?: Resolve) {
    this.targets = new OutboundTargets(allowed, { code: 'webhook_target_forbidden', key: 'airdock.webhooks.allowedHosts' }, resolve);
  }

  /** The URL as it will be used. Throws `webhook_target_forbidden`. */
  check(url: string): Promise<string> {
    return this.targets.check(url);
  }

  /** One request. Never throws. A status that came counts, also when the rest of the answer does not come in time. */
  async post(url: string, { headers, body, timeoutMs, maxAnswerBytes, signal }: PostOptions): Promise<PostOutcome> {
    const timeout = AbortSignal.timeout(timeoutMs);
    try {
      const { href, host, isSecure } = this.targets.parse(url);
      this.targets.assertAddress(host);
      const options = { method: 'POST', headers, agent: false as const, lookup: this.targets.lookup, signal: AbortSignal.any([timeout, signal]) };
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
}
