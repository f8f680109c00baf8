import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

export const SshCredential = z
  .object({
    id: z.uuid(),
    name: z.string(),
    username: z.string(),
    kind: z.enum(['key', 'password']),
    publicKeyFingerprint: z.string().nullable(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'SshCredential' });
export type SshCredential = z.infer<typeof SshCredential>;
export const SshCredentialPage = pageOf(SshCredential, 'SshCredentialPage');

export const CreateSshCredential = z
  .strictObject({
    name: z.string().min(1).max(120),
    username: z.string().regex(/^[a-z_][a-z0-9_.-]{0,31}$/),
    privateKey: z.string().max(16_384).optional().describe('OpenSSH or PEM; write-only'),
    passphrase: z.string().max(1024).optional().describe('Of the private key; write-only'),
    password: z.string().max(1024).optional().describe('Instead of a key; write-only'),
  })
  .refine((body) => (body.privateKey === undefined) !== (body.password === undefined), { message: 'give either privateKey or password' })
  .meta({ id: 'CreateSshCredential' });
export type CreateSshCredential = z.infer<typeof CreateSshCredential>;
