import { BackgroundLoop } from '@airdock/platform/background-loop';
import { Injectable } from '@nestjs/common';
import { WebhookDeliveryService } from './webhook-delivery.service.js';

/** Runs in workers: looks at the outbox now and then. */
@Injectable()
export class WebhookDispatcher extends BackgroundLoop {
  protected readonly pauseMs = 500;

  constructor(private readonly deliveries: WebhookDeliveryService) {
    super();
  }

  protected round(): Promise<void> {
    return this.deliveries.round();
  }
}
