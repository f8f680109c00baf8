import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { AppError } from '@airdock/core/errors';
import { OutboundTargets, type Resolve } from './outbound-targets.js';
import { rootMessage } from './root-message.js';

/** One request, and its bounds. */
export interface PostOptions {
  headers: Record<string, string>;
  body: string;
  /** For all of it: resolving the name, connecting, and the answer. */
  timeoutMs: number;
  /** Of the answer's body; what follows is not read. */
  maxAnswerBytes: number;
  signal: AbortSignal;
}

/** How long the body of an answer is waited for, which nobody needs but people who look for a mistake. */
const bodyMs = 2_000;

/** How a request went. Without `status` there was no answer, and `error` says why. */
export type PostOutcome = { status: number; body: string; isCut: boolean } | { error: string };

/**
 * Sends POSTs to addresses that others have chosen, from a network that they are not in. Only http and https, no
 * redirects, no proxies of the environment, bounded in time and size, and only where `OutboundTargets` says: the
 * address that is checked is the one that is connected to, whatever the name resolves to next time.
 */
export class OutboundPost {
  private readonly targets: OutboundTargets;

  /** @param allowed as `OutboundTargets` takes it */
  constructor(allowed: readonly string[], resolve?: Resolve) {
    this.targets = new OutboundTargets(
      allowed,
      { code: 'webhook_target_forbidden', key: 'airdock.webhooks.allowedHosts' },
      resolve,
    );
  }

  /** The URL as it will be used. Throws `webhook_target_forbidden`. */
  check(url: string): Promise<string> {
    return this.targets.check(url);
  }

  /**
   * One request. Never throws. A status that came counts, whatever becomes of the rest of the answer: that is waited
   * for a moment, cut off and let go.
   */
  async post(url: string, { headers, body, timeoutMs, maxAnswerBytes, signal }: PostOptions): Promise<PostOutcome> {
    const timeout = AbortSignal.timeout(timeoutMs);
    try {
      const { href, host, isSecure } = this.targets.parse(url);
      this.targets.assertAddress(host);
      const options = {
        method: 'POST',
        headers,
        agent: false as const,
        lookup: this.targets.lookup,
        signal: AbortSignal.any([timeout, signal]),
      };
      return await new Promise((resolve, reject) => {
        const request = (isSecure ? httpsRequest : httpRequest)(href, options);
        let fail: (error: Error) => void = reject;
        request.on('error', (error) => fail(error));
        request.once('close', () => fail(new Error('the connection was closed')));
        // Nobody asked for another protocol.
        request.once('upgrade', ({ statusCode = 101 }, socket) => {
          resolve({ status: statusCode, body: '', isCut: true });
          socket.destroy();
        });
        request.once('response', (response) => {
          const chunks: Buffer[] = [];
          let size = 0;
          const end = (isCut: boolean) => {
            clearTimeout(timer);
            const text = Buffer.concat(chunks).subarray(0, maxAnswerBytes).toString('utf8').replaceAll('\0', '\uFFFD');
            resolve({ status: response.statusCode ?? 0, body: text, isCut });
            request.destroy();
          };
          const timer = setTimeout(() => end(true), Math.min(bodyMs, timeoutMs));
          const stop = () => end(true);
          fail = stop;
          options.signal.addEventListener('abort', stop, { once: true });
          if (options.signal.aborted) stop();
          response.on('data', (chunk: Buffer) => {
            if (size > maxAnswerBytes) return;
            chunks.push(chunk);
            size += chunk.length;
            if (size > maxAnswerBytes) end(true);
          });
          response.once('end', () => end(false));
          response.on('error', stop);
          response.once('close', stop);
        });
        request.end(body);
      });
    } catch (error) {
      if (timeout.aborted) return { error: `no answer within ${timeoutMs / 1000} s` };
      return {
        error:
          error instanceof AppError
            ? error.message
            : `no answer: ${(error as { code?: string }).code ?? rootMessage(error)}`,
      };
    }
  }
}
