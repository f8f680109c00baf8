import { z } from 'zod';

const keyId = z
  .string()
  .regex(/^SHA256:[A-Za-z0-9+/]{43}$/)
  .describe('The fingerprint, as ssh-keygen -lf shows it');

export const SigningKey = z
  .object({
    id: z.string().describe('own, or an id'),
    name: z.string(),
    keyId,
    fingerprint: z.string().describe('The same in hex, in groups of four, to be read aloud'),
    publicKey: z.string().describe('ssh-ed25519 …, to be given to other sites'),
    own: z.boolean().describe('Whether this DU signs with it'),
    createdAt: z.iso.datetime().nullable(),
  })
  .meta({ id: 'BackupSigningKey' });
export type SigningKey = z.infer<typeof SigningKey>;
export const SigningKeyList = z.object({ items: z.array(SigningKey) }).meta({ id: 'BackupSigningKeyList' });

export const CreateSigningKey = z
  .strictObject({
    name: z
      .string()
      .regex(/^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$/)
      .refine((name) => name !== 'own', 'own is the key of this DU')
      .describe('Of the site'),
    publicKey: z.string().max(1_000).describe('What the other site shows as publicKey'),
    keyId: z
      .string()
      .regex(/^(SHA256:[A-Za-z0-9+/]{43}|[0-9A-Fa-f]{4}( ?[0-9A-Fa-f]{4}){15})$/)
      .optional()
      .describe(
        'The fingerprint that somebody there has read out, as `keyId` or as `fingerprint`: the key must have it',
      ),
  })
  .meta({ id: 'CreateBackupSigningKey' });
export type CreateSigningKey = z.infer<typeof CreateSigningKey>;
