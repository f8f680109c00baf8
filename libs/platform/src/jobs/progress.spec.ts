import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { noProgress, ProgressMeter, type ProgressUpdate, type StoredProgress } from './progress.js';

describe('ProgressMeter', () => {
  it('never runs backwards, whatever is reported, and stays below 100 until the job has succeeded', () => {
    const update = fc.record(
      {
        bytesDone: fc.nat(1000),
        bytesTotal: fc.nat(1000),
        itemsDone: fc.nat(10),
        itemsTotal: fc.nat(10),
        percent: fc.double({ min: 0, max: 100, noNaN: true }),
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(fc.array(update), (updates) => {
        const meter = new ProgressMeter(noProgress);
        let last = meter.value;
        for (const next of updates) {
          const value = meter.update(next);
          for (const key of ['percent', 'bytesDone', 'itemsDone'] as const)
            expect(value[key]).toBeGreaterThanOrEqual(last[key]);
          expect(value.percent).toBeLessThanOrEqual(99);
          expect(value.bytesDone).toBeLessThanOrEqual(value.bytesTotal);
          last = value;
        }
      }),
    );
  });

  it('continues from what an earlier run reached', () => {
    const meter = new ProgressMeter({ ...noProgress, phase: 'push', percent: 40, bytesDone: 400, bytesTotal: 1000 });
    expect(meter.update({ bytesDone: 10, bytesTotal: 1000 })).toMatchObject({ percent: 40, bytesDone: 400 });
    expect(meter.update({ bytesDone: 500 })).toMatchObject({ percent: 50, bytesDone: 500 });
  });

  it('takes no share from the counts of a phase that has ended', () => {
    const meter = new ProgressMeter(noProgress);
    meter.update({ phase: 'pull', itemsDone: 21, itemsTotal: 21, percent: 50 });
    expect(meter.update({ phase: 'upgrade' })).toMatchObject({ phase: 'upgrade', percent: 50 });
  });

  it('has advanced with a greater share, and with a phase that no run before it reached', () => {
    const advances = (...updates: ProgressUpdate[]) => {
      const meter = new ProgressMeter(before);
      for (const update of updates) meter.update(update);
      before = meter.value;
      return meter.hasAdvanced;
    };
    let before: StoredProgress = noProgress;
    expect(advances()).toBe(false);
    expect(advances({ phase: 'gate', percent: 20 })).toBe(true);
    expect(advances({ phase: 'gate', percent: 10 })).toBe(false);
    expect(advances({ phase: 'gate' }, { phase: 'pull' })).toBe(true);
    // A job that dies in the pull each time goes through the gate each time.
    expect(advances({ phase: 'gate' }, { phase: 'pull' })).toBe(false);
    expect(advances({ percent: 20.1 })).toBe(true);
    for (let n = 0; n < 200; n++) advances({ phase: `phase ${n}` });
    expect(advances({ phase: 'one more' })).toBe(false);
    expect(before.phases).toHaveLength(100);
  });

  it('tells what is being worked on, each thing never less far than before', () => {
    const item = (name: string, bytesDone: number) => ({
      name,
      bytesDone,
      bytesTotal: 10,
      parts: [{ name: 'layer', bytesDone, bytesTotal: 10 }],
    });
    const meter = new ProgressMeter({ ...noProgress, items: [item('a', 7)] });
    meter.update({ items: () => [item('a', 3), item('b', 1)] });
    expect(meter.value.items).toEqual([item('a', 7), item('b', 1)]);
    meter.update({ items: () => [item('b', 5)] });
    expect(meter.value.items).toEqual([item('b', 5)]);
  });

  it('tells rate and time left from the last seconds', () => {
    let nowMs = 0;
    const meter = new ProgressMeter(noProgress, () => nowMs);
    for (nowMs = 0; nowMs <= 4000; nowMs += 500) meter.update({ bytesDone: nowMs, bytesTotal: 10_000 });
    expect(meter.value).toMatchObject({ bytesPerSecond: 1000, etaSeconds: 6 });
  });
});
