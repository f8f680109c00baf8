import { eventTypes } from '@airdock/core/events';
import { PageQuery, pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

const states = ['pending', 'delivered', 'failed'] as const;

export const WebhookDelivery = z
  .object({
    id: z.uuid(),
    eventId: z.uuid().describe('The webhook-id header: the same on each try, and in redeliveries'),
    endpointId: z.uuid(),
    eventType: z.string(),
    state: z.enum(states),
    redeliveryOf: z.uuid().nullable(),
    attempts: z.number().int(),
    responseStatus: z.number().int().nullable(),
    error: z.string().nullable().describe('Why the last attempt did not count'),
    createdAt: z.iso.datetime(),
    nextAttemptAt: z.iso.datetime().nullable(),
    deliveredAt: z.iso.datetime().nullable(),
  })
  .meta({ id: 'WebhookDelivery' });
export type WebhookDelivery = z.infer<typeof WebhookDelivery>;
export const WebhookDeliveryPage = pageOf(WebhookDelivery, 'WebhookDeliveryPage');

export const WebhookAttempt = z
  .object({
    at: z.iso.datetime(),
    durationMs: z.number().int(),
    status: z.number().int().nullable(),
    error: z.string().nullable(),
  })
  .meta({ id: 'WebhookAttempt' });
export type WebhookAttempt = z.infer<typeof WebhookAttempt>;

export const WebhookDeliveryLog = WebhookDelivery.extend({
  request: z
    .object({
      url: z.string(),
      headers: z.record(z.string(), z.string()).describe('Without webhook-signature'),
      body: z.string(),
    })
    .nullable()
    .describe('Of the last attempt'),
  response: z
    .object({
      status: z.number().int(),
      body: z.string().describe('The first 4 KiB'),
      isCut: z.boolean().describe('There was more, or it did not come in time'),
    })
    .nullable()
    .describe('Of the last attempt; null when there was none'),
  log: z.array(WebhookAttempt).describe('All attempts; one whose worker was killed is missing'),
}).meta({ id: 'WebhookDeliveryLog' });
export type WebhookDeliveryLog = z.infer<typeof WebhookDeliveryLog>;

export const WebhookDeliveryQuery = PageQuery.extend({
  endpointId: z.uuid().optional(),
  eventId: z.uuid().optional(),
  eventType: z.string().max(100).optional(),
  state: z.enum(states).optional(),
});
export type WebhookDeliveryQuery = z.infer<typeof WebhookDeliveryQuery>;

export const WebhookEvent = z
  .strictObject({
    id: z.uuid(),
    type: z.enum(eventTypes),
    payload: z.string().describe('What endpoints get'),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'WebhookEvent' });
export type WebhookEvent = z.infer<typeof WebhookEvent>;
