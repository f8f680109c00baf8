import { Injectable, Logger, type OnApplicationBootstrap, type OnApplicationShutdown } from '@nestjs/common';
import { WebhookDeliveryService } from './webhook-delivery.service.js';

const roundMs = 500;

/** Runs in workers: looks at the outbox now and then. */
@Injectable()
export class WebhookDispatcher implements OnApplicationBootstrap, OnApplicationShutdown {
  private readonly logger = new Logger(WebhookDispatcher.name);
  private timer: NodeJS.Timeout | undefined;
  private current: Promise<void> = Promise.resolve();
  private stopped = false;

  constructor(private readonly deliveries: WebhookDeliveryService) {}

  onApplicationBootstrap(): void {
    this.current = this.round();
  }

  async onApplicationShutdown(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.timer);
    await this.current;
  }

  private async round(): Promise<void> {
    try {
      await this.deliveries.round();
    } catch (error) {
      this.logger.warn({ err: error }, 'the outbox could not be worked off; trying again');
    }
    if (this.stopped) return;
    this.timer = setTimeout(() => {
      this.current = this.round();
    }, roundMs);
  }
}
