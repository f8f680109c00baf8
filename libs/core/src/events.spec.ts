import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { eventTypes, jobEvent, matchesEventFilter, pingEvent } from './events.js';

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
