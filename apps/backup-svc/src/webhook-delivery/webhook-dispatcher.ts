import { BackgroundLoop } from '@airdock/platform/background-loop';
import { Injectable } from '@nestjs/common';
import { WebhookDeliveryService } from './webhook-delivery.service.js';

/** Runs in workers: looks for events and deliveries that are due. */
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
