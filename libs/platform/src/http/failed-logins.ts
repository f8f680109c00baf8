import { Injectable, Logger } from '@nestjs/common';
import { Counter } from 'prom-client';
import { Metrics } from './health.controller.js';

/** So many wrong tokens of one address are answered at once, and then one a second. */
const burst = 10;
const perSecond = 1;
/** Addresses that are remembered; beyond that the one that was seen longest ago is forgotten. */
const maxAddresses = 1_000;
/** Answers of one address that are kept waiting; further ones get none. */
const maxWaiting = 32;
const waitMs = 1_000;
/** Lines of the log for one address in a minute; the others are counted. */
const linesAMinute = 5;
const minuteMs = 60_000;

interface Address {
  tokens: number;
  at: number;
  waiting: number;
  lines: number;
  unsaid: number;
  minuteAt: number;
}

/**
 * Wrong tokens, by address: counted, logged, and slowed down. Right ones are never kept waiting: on loopback an
 * attacker has the address of the operator. What is remembered is bounded, and so is what is logged.
 */
@Injectable()
export class FailedLogins {
  private readonly addresses = new Map<string, Address>();
  private readonly logger = new Logger('login');
  private readonly counter: Counter;

  constructor(metrics: Metrics) {
    this.counter = new Counter({
      name: 'airdock_failed_logins_total',
      help: 'Requests without a token, or with a wrong one',
      labelNames: ['code'],
      registers: [metrics.registry],
    });
  }

  /** Takes one failure down. `answer`: at once; `slowed`: after a second, as too many; `drop`: not at all. */
  async count(from: string, code: string): Promise<'answer' | 'slowed' | 'drop'> {
    this.counter.inc({ code });
    const address = this.find(from);
    this.log(from, code, address);
    const now = performance.now();
    address.tokens = Math.min(burst, address.tokens + ((now - address.at) / 1000) * perSecond);
    address.at = now;
    if (address.tokens >= 1) {
      address.tokens -= 1;
      return 'answer';
    }
    if (address.waiting >= maxWaiting) return 'drop';
    address.waiting += 1;
    await new Promise((resolve) => setTimeout(resolve, waitMs).unref());
    address.waiting -= 1;
    return 'slowed';
  }

  private find(from: string): Address {
    const now = performance.now();
    const address = this.addresses.get(from) ?? {
      tokens: burst,
      at: now,
      waiting: 0,
      lines: 0,
      unsaid: 0,
      minuteAt: now,
    };
    // A map goes through its keys in the order of their insertion.
    this.addresses.delete(from);
    this.addresses.set(from, address);
    const [oldest] = this.addresses.keys();
    if (this.addresses.size > maxAddresses && oldest !== undefined) this.addresses.delete(oldest);
    return address;
  }

  private log(from: string, code: string, address: Address): void {
    const now = performance.now();
    if (now - address.minuteAt > minuteMs) {
      if (address.unsaid > 0)
        this.logger.warn({ from, code, failures: address.unsaid }, `${address.unsaid} more logins from ${from} failed`);
      address.lines = 0;
      address.unsaid = 0;
      address.minuteAt = now;
    }
    if (address.lines === linesAMinute) {
      // The rest of a flood is told when it goes on after the minute, or never told apart.
      address.unsaid += 1;
      if (address.unsaid === 1)
        this.logger.warn(
          { from },
          `many logins from ${from} fail: further ones are counted in airdock_failed_logins_total`,
        );
      return;
    }
    address.lines += 1;
    this.logger.warn({ from, code }, `a login from ${from} failed: ${code}`);
  }
}
