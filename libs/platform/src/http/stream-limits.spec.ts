import { EventEmitter } from 'node:events';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { describe, expect, it } from 'vitest';
import { StreamLimits } from './stream-limits.js';

const take = (limits: StreamLimits, principal: string, from = '10.0.0.1') => {
  const raw = new EventEmitter();
  limits.take({ principal, from } as FastifyRequest, { raw } as unknown as FastifyReply);
  return () => raw.emit('close');
};
const takeMany = (limits: StreamLimits, count: number, principal: string, from?: string) =>
  Array.from({ length: count }, () => take(limits, principal, from));
const exceeded = expect.objectContaining({ code: 'streams_exceeded' });

describe('answers that stay open', () => {
  it('are bounded for each client, and one that ends makes room for another', () => {
    const limits = new StreamLimits();
    const [end] = takeMany(limits, 64, 'admin');
    expect(() => take(limits, 'admin')).toThrow(exceeded);
    take(limits, 'admin', '10.0.0.2');
    take(limits, 'local');
    end?.();
    take(limits, 'admin');
    expect(() => take(limits, 'admin')).toThrow(exceeded);
  });

  it('are bounded for all clients together, and what was refused does not count', () => {
    const limits = new StreamLimits();
    const ends = Array.from({ length: 8 }, (_, index) => takeMany(limits, 64, 'admin', `10.0.0.${index}`)).flat();
    for (let tries = 0; tries < 3; tries++) expect(() => take(limits, 'admin', '10.0.1.1')).toThrow(exceeded);
    ends[0]?.();
    const end = take(limits, 'admin', '10.0.1.1');
    expect(() => take(limits, 'admin', '10.0.1.2')).toThrow(exceeded);
    for (const one of [...ends.slice(1), end]) one();
    expect(takeMany(limits, 64, 'admin')).toHaveLength(64);
  });

  it('are not bounded for services, and those of services keep nobody out', () => {
    const limits = new StreamLimits();
    takeMany(limits, 600, 'internal');
    take(limits, 'admin');
  });
});
