import type { JobProgress } from './job.schema.js';

export const noProgress: JobProgress = {
  phase: 'queued',
  percent: 0,
  bytesDone: 0,
  bytesTotal: 0,
  itemsDone: 0,
  itemsTotal: 0,
  bytesPerSecond: 0,
  etaSeconds: null,
};

/** What a processor reports; everything else is derived. */
export type ProgressUpdate = Partial<Pick<JobProgress, 'phase' | 'percent' | 'bytesDone' | 'bytesTotal' | 'itemsDone' | 'itemsTotal'>>;

/**
 * Turns what a processor reports into progress that never runs backwards, also across restarts of the worker: it starts from the row's.
 * The rate is averaged over the last seconds of this run; bytes that were found done at the start do not count as speed.
 */
export class ProgressMeter {
  private samples: { atMs: number; bytes: number }[] = [];

  constructor(
    private current: JobProgress,
    private readonly clock: () => number = Date.now,
  ) {}

  update(update: ProgressUpdate): JobProgress {
    const last = this.current;
    const bytesTotal = update.bytesTotal ?? last.bytesTotal;
    const itemsTotal = update.itemsTotal ?? last.itemsTotal;
    const bytesDone = Math.max(last.bytesDone, update.bytesDone ?? 0);
    const itemsDone = Math.max(last.itemsDone, update.itemsDone ?? 0);
    const share = bytesTotal > 0 ? bytesDone / bytesTotal : itemsTotal > 0 ? itemsDone / itemsTotal : 0;
    // 100 is for the job that has succeeded.
    const percent = Math.max(last.percent, Math.min(99, Math.round((update.percent ?? share * 100) * 10) / 10));
    const bytesPerSecond = this.rate(bytesDone);
    const left = Math.max(0, bytesTotal - bytesDone);
    this.current = {
      phase: update.phase ?? last.phase,
      percent,
      bytesDone,
      bytesTotal: Math.max(bytesTotal, bytesDone),
      itemsDone,
      itemsTotal: Math.max(itemsTotal, itemsDone),
      bytesPerSecond,
      etaSeconds: bytesPerSecond > 0 ? Math.ceil(left / bytesPerSecond) : null,
    };
    return this.current;
  }

  get value(): JobProgress {
    return this.current;
  }

  private rate(bytes: number): number {
    const atMs = this.clock();
    this.samples.push({ atMs, bytes });
    while (this.samples.length > 2 && atMs - (this.samples[0]?.atMs ?? atMs) > 5000) this.samples.shift();
    const first = this.samples[0];
    const elapsedMs = first ? atMs - first.atMs : 0;
    return first && elapsedMs >= 200 ? Math.round(((bytes - first.bytes) * 1000) / elapsedMs) : this.current.bytesPerSecond;
  }
}
