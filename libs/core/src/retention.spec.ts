import fc from 'fast-check';
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

describe('retention, whatever the backups', () => {
  const policies = fc.record({
    last: fc.nat({ max: 5 }),
    daily: fc.nat({ max: 5 }),
    weekly: fc.nat({ max: 5 }),
    monthly: fc.nat({ max: 5 }),
  });
  const times = fc
    .array(fc.date({ min: new Date('2026-01-01'), max: new Date('2026-04-01'), noInvalidDate: true }), {
      maxLength: 30,
    })
    .map((dates) => taken(...dates.map((date) => date.toISOString()).sort()));

  /** The oracle: period by period, the newest of each that has any. */
  function expected(backups: RetainedBackup[], policy: RetentionPolicy): Set<string> {
    const ids = new Set(backups.slice(Math.max(0, backups.length - policy.last)).map(({ id }) => id));
    const weekOf = (time: string) => Math.floor((Date.parse(time) / 86_400_000 + 3) / 7);
    const periods = [
      [policy.daily, (time: string) => time.slice(0, 10)],
      [policy.weekly, (time: string) => String(weekOf(time)).padStart(6, '0')],
      [policy.monthly, (time: string) => time.slice(0, 7)],
    ] as const;
    for (const [count, periodOf] of periods) {
      const newest = new Map(backups.map(({ id, createdAt }) => [periodOf(createdAt), id]));
      for (const period of [...newest.keys()].sort().reverse().slice(0, count)) ids.add(newest.get(period) ?? '');
    }
    return ids;
  }

  it('keeps the newest of each period that has any, and nothing else', () => {
    fc.assert(
      fc.property(times, policies, (backups, policy) => {
        expect(new Set(kept(backups, policy))).toEqual(expected(backups, policy));
      }),
    );
  });

  it('judges every backup, newest first, in whatever order they are listed', () => {
    const lists = times.chain((backups) =>
      fc.shuffledSubarray(backups, { minLength: backups.length }).map((shuffled) => [backups, shuffled] as const),
    );
    fc.assert(
      fc.property(lists, policies, ([backups, shuffled], policy) => {
        const reasons = reasonsToKeep(shuffled, policy);
        expect([...reasons.keys()]).toEqual(backups.map(({ id }) => id).reverse());
        expect([...reasons]).toEqual([...reasonsToKeep(backups, policy)]);
      }),
    );
  });

  it('keeps no less by a larger policy', () => {
    fc.assert(
      fc.property(times, policies, policies, (backups, one, more) => {
        const sum = {
          last: one.last + more.last,
          daily: one.daily + more.daily,
          weekly: one.weekly + more.weekly,
          monthly: one.monthly + more.monthly,
        };
        const larger = kept(backups, sum);
        for (const id of kept(backups, one)) expect(larger).toContain(id);
      }),
    );
  });

  it('goes by time, then by id, where two backups have the same place', () => {
    const same = ['b', 'a', 'c'].map((id) => ({ id, createdAt: '2026-11-24T01:00:00.000Z', sequence: 1 }));
    const later = { id: 'a', createdAt: '2026-11-24T02:00:00.000Z', sequence: 1 };
    expect(kept(same, { last: 1 })).toEqual(['c']);
    expect([...reasonsToKeep([...same.filter(({ id }) => id !== 'a'), later], none).keys()]).toEqual(['a', 'c', 'b']);
  });

  it('begins a week on Monday, also across a year', () => {
    const days = taken('2026-12-27T23:59:59.000Z', '2026-12-28T00:00:00.000Z', '2027-01-03T23:59:59.000Z');
    expect([...reasonsToKeep(days, { ...none, weekly: 9 })]).toEqual([
      ['3', ['weekly 2026-12-28']],
      ['2', []],
      ['1', ['weekly 2026-12-21']],
    ]);
  });
});
