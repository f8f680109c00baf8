import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';
import { eventTypes } from '../webhook-endpoint/webhook-endpoint.schema.js';

export const WebhookDelivery = z
  .object({
    id: z.uuid(),
    eventId: z.uuid().describe('The webhook-id header: the same on each try'),
    endpointId: z.uuid(),
    eventType: z.string(),
    state: z.enum(['pending', 'delivered', 'failed']),
    attempts: z.number().int(),
    responseStatus: z.number().int().nullable(),
    error: z.string().nullable(),
    createdAt: z.iso.datetime(),
    nextAttemptAt: z.iso.datetime().nullable(),
    deliveredAt: z.iso.datetime().nullable(),
  })
  .meta({ id: 'WebhookDelivery' });
export type WebhookDelivery = z.infer<typeof WebhookDelivery>;
export const WebhookDeliveryPage = pageOf(WebhookDelivery, 'WebhookDeliveryPage');

export const WebhookEvent = z
  .strictObject({ id: z.uuid(), type: z.enum(eventTypes), payload: z.string().describe('What endpoints get'), createdAt: z.iso.datetime() })
  .meta({ id: 'WebhookEvent' });
export type WebhookEvent = z.infer<typeof WebhookEvent>;
