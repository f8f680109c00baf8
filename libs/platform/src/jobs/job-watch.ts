import type { JobsService } from './jobs.service.js';

/** What another process changes is seen by looking. */
const lookMs = 1_000;

/** Tells when one of some jobs has changed, or may have; what happens between two looks is not missed. */
export class JobWatch implements Disposable {
  private hasChanged = false;
  private wake: () => void = () => undefined;

  constructor(
    private readonly jobs: JobsService,
    private readonly watched: { has(id: string): boolean },
  ) {
    jobs.claims.changed.add(this.onChange);
  }

  /** Look at the jobs after this, not before. */
  async wait(signal: AbortSignal): Promise<void> {
    if (!this.hasChanged && !signal.aborted) {
      const woken = new Promise<void>((resolve) => {
        this.wake = resolve;
      });
      const timer = setTimeout(this.wake, lookMs);
      signal.addEventListener('abort', this.wake, { once: true });
      await woken;
      clearTimeout(timer);
      signal.removeEventListener('abort', this.wake);
    }
    this.hasChanged = false;
  }

  [Symbol.dispose](): void {
    this.jobs.claims.changed.delete(this.onChange);
  }

  private readonly onChange = (id: string) => {
    if (!this.watched.has(id)) return;
    this.hasChanged = true;
    this.wake();
  };
}
