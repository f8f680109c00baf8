import type { JobProgress, JobProgressItem } from './job.schema.js';

/**
 * Progress as a job's row has it. `phases` are all that it was ever in, the first hundred: a new one means that it got
 * further.
 */
export interface StoredProgress extends JobProgress {
  phases?: string[];
}

const maxPhases = 100;

/** The progress of a job that nobody has taken up. */
export const noProgress: StoredProgress = {
  phase: 'queued',
  percent: 0,
  bytesDone: 0,
  bytesTotal: 0,
  itemsDone: 0,
  itemsTotal: 0,
  bytesPerSecond: 0,
  etaSeconds: null,
  items: [],
};

/** What a processor reports; everything else is derived. */
export interface ProgressUpdate
  extends Partial<Pick<JobProgress, 'phase' | 'percent' | 'bytesDone' | 'bytesTotal' | 'itemsDone' | 'itemsTotal'>> {
  /** What is being worked on; called when progress is stored, a few times a second. */
  items?: () => JobProgressItem[];
}

/**
 * Turns what a processor reports into progress that never runs backwards, also across restarts of the worker: it starts
 * from the row's. The rate is averaged over the last seconds of this run; bytes that were found done at the start do
 * not count as speed.
 */
export class ProgressMeter {
  private samples: { atMs: number; bytes: number }[] = [];
  private items: () => JobProgressItem[] = () => [];
  private readonly start: StoredProgress;
  private readonly phases: Set<string>;

  constructor(
    private current: StoredProgress,
    private readonly clock: () => number = Date.now,
  ) {
    this.start = current;
    this.phases = new Set(current.phases);
  }

  /**
   * Whether this run brought the job further than all before it: a share of the work, or a phase that none of them
   * reached.
   */
  get hasAdvanced(): boolean {
    return this.current.percent > this.start.percent || this.phases.size > (this.start.phases?.length ?? 0);
  }

  update(update: ProgressUpdate): StoredProgress {
    const last = this.current;
    if (update.phase !== undefined && this.phases.size < maxPhases) this.phases.add(update.phase);
    const bytesTotal = update.bytesTotal ?? last.bytesTotal;
    const itemsTotal = update.itemsTotal ?? last.itemsTotal;
    const bytesDone = Math.max(last.bytesDone, update.bytesDone ?? 0);
    const itemsDone = Math.max(last.itemsDone, update.itemsDone ?? 0);
    // What only names a phase says nothing about the share: the counts are those of the phase before.
    const isCounted = [update.bytesDone, update.bytesTotal, update.itemsDone, update.itemsTotal].some(
      (count) => count !== undefined,
    );
    const share = !isCounted
      ? 0
      : bytesTotal > 0
        ? bytesDone / bytesTotal
        : itemsTotal > 0
          ? itemsDone / itemsTotal
          : 0;
    // 100 is for the job that has succeeded.
    const percent = Math.max(last.percent, Math.min(99, Math.round((update.percent ?? share * 100) * 10) / 10));
    const bytesPerSecond = this.rate(bytesDone);
    const bytesLeft = Math.max(0, bytesTotal - bytesDone);
    this.current = {
      phase: update.phase ?? last.phase,
      percent,
      bytesDone,
      bytesTotal: Math.max(bytesTotal, bytesDone),
      itemsDone,
      itemsTotal: Math.max(itemsTotal, itemsDone),
      bytesPerSecond,
      etaSeconds: bytesPerSecond > 0 ? Math.ceil(bytesLeft / bytesPerSecond) : null,
      items: last.items,
      phases: [...this.phases],
    };
    this.items = update.items ?? this.items;
    return this.current;
  }

  /** Items are those of now, each at least as far as it was when it was last seen. */
  get value(): StoredProgress {
    this.current = { ...this.current, items: notLess(this.current.items, this.items()) };
    return this.current;
  }

  private rate(bytes: number): number {
    const atMs = this.clock();
    this.samples.push({ atMs, bytes });
    while (this.samples.length > 2 && atMs - (this.samples[0]?.atMs ?? atMs) > 5000) this.samples.shift();
    const first = this.samples[0];
    const elapsedMs = first ? atMs - first.atMs : 0;
    return first && elapsedMs >= 200
      ? Math.round(((bytes - first.bytes) * 1000) / elapsedMs)
      : this.current.bytesPerSecond;
  }
}

function notLess<T extends JobProgressItem['parts'][number] & { parts?: JobProgressItem['parts'] }>(
  before: readonly T[],
  now: readonly T[],
): T[] {
  const earlier = new Map(before.map((item) => [item.name, item]));
  return now.map((item) => {
    const known = earlier.get(item.name);
    const parts = item.parts ? { parts: notLess(known?.parts ?? [], item.parts) } : {};
    return { ...item, bytesDone: Math.max(item.bytesDone, known?.bytesDone ?? 0), ...parts };
  });
}
