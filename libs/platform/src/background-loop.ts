import { type BeforeApplicationShutdown, Logger, type OnApplicationBootstrap } from '@nestjs/common';

/**
 * Something that a worker does now and then by itself, one round at a time. A failing round is logged once, until one succeeds, and does not end the
 * loop. Shutdown waits for the running round, while databases are still open.
 */
export abstract class BackgroundLoop implements OnApplicationBootstrap, BeforeApplicationShutdown {
  protected readonly logger = new Logger(this.constructor.name);
  /** Pause between rounds. */
  protected abstract readonly pauseMs: number;
  private timer: NodeJS.Timeout | undefined;
  private current: Promise<void> = Promise.resolve();
  private isFailing = false;
  protected isStopped = false;

  protected abstract round(): Promise<void>;

  onApplicationBootstrap(): void {
    this.current = this.run();
  }

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
    if (this.isStopped) return;
    this.timer = setTimeout(() => {
      this.current = this.run();
    }, this.pauseMs);
  }
}
