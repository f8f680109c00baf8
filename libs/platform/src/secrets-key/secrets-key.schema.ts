import { z } from 'zod';

export const ResealedSecrets = z
  .object({
    resealed: z.number().int().describe('Texts that were sealed with the key before'),
    unreadable: z.number().int().describe('Texts that no key opens'),
  })
  .meta({ id: 'ResealedSecrets' });
export type ResealedSecrets = z.infer<typeof ResealedSecrets>;

export const RotateToken = z
  .strictObject({
    keepPreviousMinutes: z
      .number()
      .min(0)
      .max(10_080)
      .default(60)
      .describe('How long the token of now goes on counting beside the new one; 0 ends it at once'),
  })
  .meta({ id: 'RotateToken' });
export type RotateToken = z.infer<typeof RotateToken>;

export const RotatedToken = z
  .object({
    tokenFile: z
      .string()
      .describe(
        'Where the new token is. It is not in this answer: whoever got hold of a token shall not make another one of it',
      ),
    previousUntil: z.iso.datetime().nullable().describe('Until when the token before counts; null: no longer'),
  })
  .meta({ id: 'RotatedToken' });
export type RotatedToken = z.infer<typeof RotatedToken>;
