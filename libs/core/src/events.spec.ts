import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { eventFilterPattern, eventTypes, jobEvent, matchesEventFilter, pingEvent } from './events.js';

describe('event types', () => {
  it('are each there once, and those of jobs are found by the type of the job', () => {
    expect(new Set(eventTypes).size).toBe(eventTypes.length);
    expect(jobEvent('backup.create', 'started')).toBe('backup.create.started');
    expect(jobEvent('host.configure-host', 'failed')).toBeUndefined();
  });

  it('are all in docs/webhooks.md', async () => {
    const text = await readFile(join(import.meta.dirname, '../../../docs/webhooks.md'), 'utf8');
    const named = new Set([...text.matchAll(/`([a-z.-]+)`/g)].map(([, word]) => word));
    const missing = eventTypes.filter((type) => !named.has(type) && !named.has(type.replace(/\.[a-z]+$/, '')));
    expect(missing.filter((type) => type !== pingEvent)).toEqual([]);
  });

  it.each([
    ['image.push.failed', 'image.push.failed', true],
    ['image.push.failed', 'image.push.started', false],
    ['backup.*', 'backup.create.succeeded', true],
    ['backup.*', 'backup.stale', true],
    ['backup.*', 'webhook.disabled', false],
    ['*.failed', 'image.push.failed', true],
    ['*.failed', 'image.push.succeeded', false],
    ['*', 'backup.stale', true],
    ['backup', 'backup.stale', false],
    ['backup.s*', 'backup.stale', false],
    ['(a+)+', 'aaaa', false],
    ['', 'backup.stale', false],
  ])('the filter %j lets %s through: %s', (filter, type, expected) =>
    expect(matchesEventFilter(filter, type)).toBe(expected),
  );
});

describe('filters of events', () => {
  it('that are the type itself let nothing else through', () => {
    for (const type of eventTypes)
      expect(eventTypes.filter((other) => matchesEventFilter(type, other))).toEqual([type]);
  });

  it('of a service, of a moment and of everything let through what their parts say', () => {
    const through = (filter: string) => eventTypes.filter((type) => matchesEventFilter(filter, type));
    expect(through('*')).toEqual(eventTypes);
    for (const service of ['registry', 'image', 'host', 'cluster', 'backup', 'webhook'])
      expect(through(`${service}.*`)).toEqual(eventTypes.filter((type) => type.split('.')[0] === service));
    for (const moment of ['started', 'succeeded', 'failed', 'cancelled'])
      expect(through(`*.${moment}`)).toEqual(eventTypes.filter((type) => type.split('.').at(-1) === moment));
    expect(through('host.*.failed')).toEqual([
      'host.check.failed',
      'host.configure.failed',
      'host.operate-node.failed',
    ]);
    expect(through('*.*.*.*')).toEqual([]);
  });

  it('have no other signs than names, dots and stars', () => {
    const names = fc.stringMatching(/^[a-z-]{1,8}$/);
    fc.assert(
      fc.property(fc.array(fc.oneof(names, fc.constant('*')), { minLength: 1, maxLength: 6 }), (parts) => {
        expect(eventFilterPattern.test(parts.join('.'))).toBe(parts.length <= 4);
      }),
    );
    for (const filter of ['a.', '.a', 'a..b', 'A', 'a.**', 'a b', 'a\n', 'a.[b]', 'a+', 'a'.repeat(41)])
      expect([eventFilterPattern.test(filter), matchesEventFilter(filter, filter)]).toEqual([false, false]);
  });

  it('every moment of a job that somebody is told of has its event', () => {
    for (const moment of ['started', 'succeeded', 'failed', 'cancelled'] as const) {
      expect(jobEvent('image.push', moment)).toBe(`image.push.${moment}`);
      expect(jobEvent('cluster.plan-upgrade', moment)).toBeUndefined();
    }
    expect(jobEvent('backup', 'failed')).toBeUndefined();
    expect(jobEvent('', 'failed')).toBeUndefined();
  });
});
