import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

const jobTypes = ['backup.create', 'backup.restore', 'cluster.create', 'cluster.upgrade'] as const;
const ends = ['succeeded', 'failed', 'cancelled'] as const;
/** Ends of jobs that endpoints are told of. */
export const eventTypes = jobTypes.flatMap((type) => ends.map((end) => `${type}.${end}` as const));

export const WebhookEndpoint = z
  .object({ id: z.uuid(), url: z.string(), events: z.array(z.enum(eventTypes)), createdAt: z.iso.datetime() })
  .meta({ id: 'WebhookEndpoint' });
export type WebhookEndpoint = z.infer<typeof WebhookEndpoint>;
export const WebhookEndpointPage = pageOf(WebhookEndpoint, 'WebhookEndpointPage');

export const CreatedWebhookEndpoint = WebhookEndpoint.extend({ secret: z.string().describe('whsec_…; shown this once') }).meta({
  id: 'CreatedWebhookEndpoint',
});
export type CreatedWebhookEndpoint = z.infer<typeof CreatedWebhookEndpoint>;

export const CreateWebhookEndpoint = z
  .strictObject({
    url: z.string().max(2000).describe('http or https'),
    events: z
      .array(z.enum(eventTypes))
      .min(1)
      .default([...eventTypes]),
  })
  .meta({ id: 'CreateWebhookEndpoint' });
export type CreateWebhookEndpoint = z.infer<typeof CreateWebhookEndpoint>;
