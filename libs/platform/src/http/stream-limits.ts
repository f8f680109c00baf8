import { AppError } from '@airdock/core/errors';
import type { FastifyReply, FastifyRequest } from 'fastify';

/** Answers that stay open, of one client. */
const maxOfClient = 64;
/** And of all. */
const maxOfAll = 512;

/**
 * Bounds how many answers stay open at once. Services are not bounded: they stream images to as many hosts as they were
 * asked to.
 */
export class StreamLimits {
  private readonly open = new Map<string, number>();
  private total = 0;

  /** Counts a stream until its answer is over. Throws `streams_exceeded`. */
  take({ principal, from }: FastifyRequest, { raw }: FastifyReply): void {
    if (principal === 'internal') return;
    const client = `${principal} ${from}`;
    const count = this.open.get(client) ?? 0;
    if (count >= maxOfClient || this.total >= maxOfAll)
      throw new AppError('streams_exceeded', { detail: `${count} of ${maxOfClient} are open from here` });
    this.open.set(client, count + 1);
    this.total += 1;
    raw.once('close', () => {
      this.total -= 1;
      const remaining = (this.open.get(client) ?? 1) - 1;
      if (remaining > 0) this.open.set(client, remaining);
      else this.open.delete(client);
    });
  }
}
