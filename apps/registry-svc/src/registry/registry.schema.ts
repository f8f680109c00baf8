import { registryModes } from '@airdock/core/registry-mode';
import { ProblemDocument } from '@airdock/platform/http/operation';
import { z } from 'zod';

const mode = z
  .enum(registryModes)
  .describe('none: no registry; local: one that Airdock runs; external: one that someone else runs');

export const Registry = z
  .object({
    mode,
    host: z.string().nullable().describe('What local references begin with, e.g. localhost:5100; null in mode none'),
    url: z
      .string()
      .nullable()
      .describe('To pull from: on localhost of the DU for everybody there, or the registry that someone else runs'),
    sockets: z
      .object({ readWrite: z.string(), readOnly: z.string() })
      .nullable()
      .describe(
        'Unix sockets as unix:PATH, for Airdock itself: it writes to the one, and tunnels lead to the other. Null in the modes none and external',
      ),
    address: z
      .string()
      .nullable()
      .describe(
        'How Airdock itself reaches the registry: unix:PATH, or the URL with the addresses that were allowed for its host in the fragment',
      ),
    engine: z
      .object({
        kind: z.enum(['process', 'external']),
        version: z.string().nullable(),
        isSandboxed: z
          .boolean()
          .nullable()
          .describe('Whether it runs without access to anything but its storage; null for the registry of others'),
      })
      .nullable(),
    health: z
      .object({
        ok: z.boolean(),
        latencyMs: z.number().int(),
        error: z.string().optional(),
        readOnlyOk: z.boolean(),
        localhostOk: z
          .boolean()
          .describe('False while programs of the DU cannot pull from localhost; hosts do not need that'),
      })
      .nullable()
      .describe('Asked of the registry for this answer'),
    localhostError: ProblemDocument.nullable().describe(
      'Why there is nothing of Airdock on localhost; it is tried again by itself',
    ),
    foreignProcesses: z
      .array(
        z.object({
          kind: z
            .enum(['listener', 'decoy'])
            .describe("listener: has the registry's port on localhost; decoy: shows the arguments of the registry"),
          port: z.number().int().nullable(),
          pid: z.number().int().nullable().describe('Null where Airdock may not see it'),
          uid: z.number().int(),
          program: z.string().nullable(),
        }),
      )
      .describe('Processes of others that pass for the registry. Airdock neither uses nor ends them'),
    storage: z
      .object({
        path: z.string(),
        id: z
          .string()
          .nullable()
          .describe('Of the folder, when blobs may be placed in it directly; null when they have to be pushed'),
        recordedId: z
          .string()
          .nullable()
          .describe('Of the folder that is the storage, whether blobs may be placed in it or not'),
        usedBytes: z.number().int(),
        freeBytes: z.number().int(),
        measuredAt: z.iso.datetime(),
      })
      .nullable()
      .describe(
        'Null without a local registry, and from its first start until its folder has been walked for the first time, which may be after the registry is ready',
      ),
    storageError: ProblemDocument.nullable().describe(
      'The folder of the storage is not the one that was there before, or takes no writes: pulls go on, and nothing writes to it. `adoptableId` is what another one can be adopted as, `recordedId` what it was',
    ),
    fence: z
      .object({ upgradeId: z.uuid(), since: z.iso.datetime() })
      .nullable()
      .describe('Pushes are answered with 503 and Retry-After while the DU is upgraded; pulls go on'),
    collecting: z
      .boolean()
      .describe('A garbage collection keeps pushes, verifications, backups and restores waiting, for moments'),
    error: ProblemDocument.nullable().describe(
      'Why the wanted state could not be reached; it is tried again by itself',
    ),
    warnings: z.array(z.string()).describe('What the configuration file says, and may mean otherwise'),
    version: z.number().int().describe('Also the ETag'),
  })
  .meta({ id: 'Registry' });
export type Registry = z.infer<typeof Registry>;

export const AdoptStorage = z
  .strictObject({
    storageId: z
      .string()
      .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/)
      .describe(
        '`adoptableId` of `storageError`; or its `recordedId`, when it is the same storage that has lost nothing but the file with its id',
      ),
  })
  .meta({ id: 'AdoptStorage' });
export type AdoptStorage = z.infer<typeof AdoptStorage>;

export const PutRegistry = z
  .strictObject({
    mode,
    externalUrl: z
      .url({ protocol: /^https?$/ })
      .max(2000)
      .optional()
      .describe('Needed with mode external'),
  })
  .refine((body) => body.mode !== 'external' || body.externalUrl !== undefined, {
    path: ['externalUrl'],
    message: 'is needed with mode external',
  })
  .meta({ id: 'PutRegistry' });
export type PutRegistry = z.infer<typeof PutRegistry>;
