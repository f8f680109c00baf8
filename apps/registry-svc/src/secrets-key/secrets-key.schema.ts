import { z } from 'zod';

export const SecretsKey = z
  .object({
    fingerprint: z
      .string()
      .describe('Tells keys apart, and nothing of them; backups name the one that their secrets are sealed with'),
    rotating: z.boolean().describe('Two keys open what is sealed, until everything is sealed with the new one'),
  })
  .meta({ id: 'SecretsKey', description: 'The key that stored secrets are sealed with' });
export type SecretsKey = z.infer<typeof SecretsKey>;
