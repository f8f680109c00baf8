import { BackgroundLoop } from '@airdock/platform/background-loop';
import { ServiceDatabase } from '@airdock/platform/database';
import { QuietDatabase } from '@airdock/platform/quiet-database';
import { Injectable } from '@nestjs/common';
import { WebhookDeliveryService } from './webhook-delivery.service.js';

const atOncePerEndpoint = 4;
const tidyEveryMs = 60 * 60 * 1000;

/**
 * Runs in workers: makes deliveries of new events and attempts what is due, so many at once to each endpoint; a slow
 * one keeps no other waiting.
 */
@Injectable()
export class WebhookDispatcher extends BackgroundLoop {
  protected readonly pauseMs = 500;
  private readonly stopping = new AbortController();
  /** Attempts that are being made, with their endpoints. */
  private readonly running = new Map<Promise<void>, string>();
  private tidyAt = 0;

  private readonly quiet: QuietDatabase;

  constructor(
    private readonly deliveries: WebhookDeliveryService,
    database: ServiceDatabase,
  ) {
    super();
    this.quiet = new QuietDatabase(database);
  }

  protected async round(): Promise<void> {
    await this.quiet.unlessQuiet(async () => {
      await this.deliverWhatIsDue();
      return this.running.size === 0 && !(await this.deliveries.hasPending());
    });
    if (performance.now() < this.tidyAt) return;
    await this.deliveries.forgetOld();
    this.tidyAt = performance.now() + tidyEveryMs;
  }

  private async deliverWhatIsDue(): Promise<void> {
    await this.deliveries.dispatch();
    for (const endpointId of await this.deliveries.dueEndpoints()) {
      const free = atOncePerEndpoint - [...this.running.values()].filter((id) => id === endpointId).length;
      for (const delivery of free > 0 ? await this.deliveries.claim(endpointId, free) : []) {
        const attempt = this.deliveries
          .attempt(delivery, this.stopping.signal)
          // The claim ends by itself, and then it is tried again.
          .catch((error: unknown) =>
            this.logger.error({ err: error, delivery: delivery.id }, 'an attempt could not be noted'),
          )
          .finally(() => {
            this.running.delete(attempt);
            this.wake();
          });
        this.running.set(attempt, endpointId);
      }
    }
  }

  override async beforeApplicationShutdown(): Promise<void> {
    this.stopping.abort();
    await super.beforeApplicationShutdown();
    await Promise.all(this.running.keys());
  }
}
