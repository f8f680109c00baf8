import { describe, expect, it } from 'vitest';
import { type RetainedBackup, type RetentionPolicy, reasonsToKeep } from './retention.js';

const none: RetentionPolicy = { last: 0, daily: 0, weekly: 0, monthly: 0 };
const taken = (...times: string[]): RetainedBackup[] =>
  times.map((createdAt, index) => ({ id: `${index + 1}`, createdAt, sequence: index + 1 }));
const kept = (backups: RetainedBackup[], policy: Partial<RetentionPolicy>) =>
  [...reasonsToKeep(backups, { ...none, ...policy })].filter(([, reasons]) => reasons.length > 0).map(([id]) => id);

describe('retention', () => {
  // 2026-11-23 is a Monday.
  const backups = taken(
    '2026-09-30T01:00:00.000Z',
    '2026-11-01T01:00:00.000Z',
    '2026-11-22T01:00:00.000Z',
    '2026-11-23T01:00:00.000Z',
    '2026-11-24T01:00:00.000Z',
    '2026-11-24T23:59:59.999Z',
  );

  it('keeps the newest, and the newest of days, weeks and months that have any', () => {
    expect(kept(backups, { last: 2 })).toEqual(['6', '5']);
    expect(kept(backups, { daily: 3 })).toEqual(['6', '4', '3']);
    expect(kept(backups, { weekly: 2 })).toEqual(['6', '3']);
    expect(kept(backups, { monthly: 2 })).toEqual(['6', '1']);
    expect(kept(backups, { last: 1, weekly: 3, monthly: 12 })).toEqual(['6', '3', '2', '1']);
    expect(kept(backups, {})).toEqual([]);
  });

  it('says why', () => {
    expect(reasonsToKeep(backups, { last: 1, daily: 1, weekly: 1, monthly: 1 }).get('6')).toEqual([
      'last',
      'daily 2026-11-24',
      'weekly 2026-11-23',
      'monthly 2026-11',
    ]);
  });

  it('knows the newest one although the clock was set back', () => {
    expect(kept([...backups, { id: '7', createdAt: '2001-01-01T00:00:00.000Z', sequence: 7 }], { last: 1 })).toEqual([
      '7',
    ]);
  });
});
