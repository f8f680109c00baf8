import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

export const SshCredential = z
  .object({
    id: z.uuid(),
    name: z.string(),
    username: z.string(),
    kind: z.enum(['key', 'password']),
    publicKeyFingerprint: z.string().nullable(),
    hasSudoPassword: z.boolean(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'SshCredential' });
export type SshCredential = z.infer<typeof SshCredential>;
export const SshCredentialPage = pageOf(SshCredential, 'SshCredentialPage');

/** What is typed as one line. */
const secretLine = z
  .string()
  .min(1)
  .max(1024)
  .regex(/^[^\0\r\n]*$/, 'must be one line');

export const credentialName = z.string().min(1).max(120);
export const credentialUsername = z.string().regex(/^[a-z_][a-z0-9_.-]{0,31}$/);

const fields = {
  name: credentialName,
  username: credentialUsername,
  privateKey: z
    .string()
    .min(1)
    .max(16_384)
    .optional()
    .describe('Ed25519, ECDSA or RSA, in OpenSSH or PEM format; write-only'),
  passphrase: z.string().max(1024).optional().describe('Of the private key; write-only'),
  password: secretLine
    .optional()
    .describe('Instead of a key; also answers keyboard-interactive authentication; write-only'),
  sudoPassword: secretLine.optional().describe('For sudo on hosts where it asks for one; write-only'),
};

export const CreateSshCredential = z
  .strictObject(fields)
  .refine((body) => (body.privateKey === undefined) !== (body.password === undefined), {
    message: 'give either privateKey or password',
  })
  .meta({ id: 'CreateSshCredential' });
export type CreateSshCredential = z.infer<typeof CreateSshCredential>;

export const PatchSshCredential = z
  .strictObject({
    ...fields,
    name: fields.name.optional(),
    username: fields.username.optional(),
    privateKey: fields.privateKey.describe(
      'Takes the place of the old key with its passphrase, or of the password; write-only',
    ),
    password: fields.password.describe('Takes the place of the old password, or of the key; write-only'),
    sudoPassword: secretLine.nullable().optional().describe('null forgets it; write-only'),
  })
  .refine((body) => body.privateKey === undefined || body.password === undefined, {
    message: 'give either privateKey or password',
  })
  .refine((body) => body.passphrase === undefined || body.privateKey !== undefined, {
    message: 'give passphrase with its privateKey',
  })
  .meta({ id: 'PatchSshCredential' });
export type PatchSshCredential = z.infer<typeof PatchSshCredential>;
