import { eventFilterPattern, eventTypes, matchesEventFilter } from '@airdock/core/events';
import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

export const WebhookEndpoint = z
  .object({
    id: z.uuid(),
    url: z.string(),
    events: z.array(z.string()),
    enabled: z.boolean(),
    disabledAt: z.iso.datetime().nullable(),
    disabledReason: z.string().nullable(),
    previousSecretUntil: z.iso
      .datetime()
      .nullable()
      .describe('Until then the secret before the last rotation signs too'),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'WebhookEndpoint' });
export type WebhookEndpoint = z.infer<typeof WebhookEndpoint>;
export const WebhookEndpointPage = pageOf(WebhookEndpoint, 'WebhookEndpointPage');

export const CreatedWebhookEndpoint = WebhookEndpoint.extend({
  secret: z.string().describe('whsec_…; shown this once'),
}).meta({
  id: 'CreatedWebhookEndpoint',
});
export type CreatedWebhookEndpoint = z.infer<typeof CreatedWebhookEndpoint>;

const eventFilter = z.union(
  [
    z.enum(eventTypes),
    z
      .string()
      .regex(eventFilterPattern)
      .refine((filter) => filter.includes('*') && eventTypes.some((type) => matchesEventFilter(filter, type))),
  ],
  { error: 'is no event, nor a pattern such as backup.* or *.failed that one matches' },
);
export const webhookUrl = z.string().max(2000).describe('http or https');
export const webhookEvents = z
  .array(eventFilter)
  .min(1)
  .max(100)
  .describe('Events by name or pattern, such as `image.push.failed`, `backup.*`, `*.failed`, `*`');
/** As Standard Webhooks says: 24 to 64 bytes. */
const secret = z
  .string()
  .regex(/^whsec_([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/, 'must be whsec_ and base64')
  .refine((text) => {
    const { length } = Buffer.from(text.slice(6), 'base64');
    return length >= 24 && length <= 64;
  }, 'must be of 24 to 64 bytes')
  .optional()
  .describe('Default: a random one; write-only');

export const CreateWebhookEndpoint = z
  .strictObject({ url: webhookUrl, events: webhookEvents.default(['*']), secret })
  .meta({ id: 'CreateWebhookEndpoint' });
export type CreateWebhookEndpoint = z.infer<typeof CreateWebhookEndpoint>;

export const PatchWebhookEndpoint = z
  .strictObject({
    url: webhookUrl.optional(),
    events: webhookEvents.optional(),
    enabled: z.boolean().optional().describe('What happens while it is disabled is not sent later'),
  })
  .meta({ id: 'PatchWebhookEndpoint' });
export type PatchWebhookEndpoint = z.infer<typeof PatchWebhookEndpoint>;

export const RotateWebhookSecret = z
  .strictObject({
    secret,
    keepPreviousHours: z.number().min(0).max(720).default(24).describe('How long the secret of now signs too'),
  })
  .meta({ id: 'RotateWebhookSecret' });
export type RotateWebhookSecret = z.infer<typeof RotateWebhookSecret>;
