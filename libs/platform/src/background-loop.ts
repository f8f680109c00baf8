import { type BeforeApplicationShutdown, Logger, type OnApplicationBootstrap } from '@nestjs/common';

/**
 * Something that a worker does now and then by itself, one round at a time. A failing round is logged once, until one
 * succeeds, and does not end the loop. Shutdown waits for the running round, while databases are still open.
 *
 * @example
 * ```ts
 * @Injectable()
 * export class UploadSweeper extends BackgroundLoop {
 *   protected readonly pauseMs = 60_000;
 *
 *   protected async round(): Promise<void> {
 *     await this.uploads.removeOlderThan(Date.now() - 86_400_000);
 *   }
 * }
 * ```
 */
export abstract class BackgroundLoop implements OnApplicationBootstrap, BeforeApplicationShutdown {
  protected readonly logger = new Logger(this.constructor.name);
  /** Pause between rounds. */
  protected abstract readonly pauseMs: number;
  private timer: NodeJS.Timeout | undefined;
  private current: Promise<void> = Promise.resolve();
  private isFailing = false;
  private isWanted = false;
  protected isStopped = false;

  protected abstract round(): Promise<void>;

  onApplicationBootstrap(): void {
    this.current = this.run();
  }

  /** Begins the next round now, or right after the running one. */
  protected readonly wake = (): void => {
    if (this.timer === undefined) this.isWanted = true;
    else this.next(0);
  };

  async beforeApplicationShutdown(): Promise<void> {
    this.isStopped = true;
    clearTimeout(this.timer);
    await this.current;
  }

  private async run(): Promise<void> {
    try {
      await this.round();
      this.isFailing = false;
    } catch (error) {
      if (!this.isFailing) this.logger.error({ err: error }, 'failed; trying again');
      this.isFailing = true;
    }
    this.next(this.isWanted ? 0 : this.pauseMs);
  }

  private next(pauseMs: number): void {
    clearTimeout(this.timer);
    this.isWanted = false;
    if (this.isStopped) return;
    this.timer = setTimeout(() => {
      this.timer = undefined;
      this.current = this.run();
    }, pauseMs);
  }
}
