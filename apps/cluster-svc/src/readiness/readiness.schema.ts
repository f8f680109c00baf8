import { registryModes } from '@airdock/core/registry-mode';
import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';

export const MissingImage = z
  .object({
    upstream: z.string(),
    state: z
      .enum(['missing', 'changed', 'wrongPlatform', 'wrongRuntime'])
      .describe(
        'changed: the name leads to another digest; wrongPlatform: not for every host; wrongRuntime: the Docker of a host is too old for its layers',
      ),
    platforms: z.array(z.string()).describe('That the hosts need and the registry does not have'),
    bundles: z
      .array(z.object({ id: z.uuid(), name: z.string() }))
      .describe('Registered bundles that have it for all hosts; without any it has to be carried in'),
  })
  .meta({ id: 'MissingImage' });
export type MissingImage = z.infer<typeof MissingImage>;

export const ReadyHost = z
  .object({
    hostId: z.uuid(),
    name: z.string(),
    architecture: z.string().nullable().describe('null until it was checked'),
    configured: z.boolean(),
    drifted: z.boolean(),
    tunnel: z.enum(['up', 'connecting', 'down', 'none']).describe('none: it has none, or needs none'),
    pulled: z
      .number()
      .int()
      .nullable()
      .describe('Images that the host pulled for this answer; null: it was not asked to'),
    failedPulls: z.array(z.object({ reference: z.string(), error: ProblemDocument })),
  })
  .meta({ id: 'ReadyHost' });
export type ReadyHost = z.infer<typeof ReadyHost>;

export const Readiness = z
  .object({
    ready: z.boolean(),
    kubernetesVersion: z.string(),
    registryMode: z.enum(registryModes).describe('That the answer is for'),
    imageSet: z.object({ id: z.uuid(), name: z.string(), images: z.number().int() }).nullable(),
    missingImages: z.array(MissingImage),
    hosts: z.array(ReadyHost),
    problems: z
      .array(ProblemDocument)
      .describe(
        'Everything that is in the way, each with its next step. Empty: it would stand up, with no network, now',
      ),
    pull: z.enum(['none', 'sample', 'all']).describe('Which images each host has pulled for this answer'),
    seenAt: z.iso.datetime(),
  })
  .meta({ id: 'Readiness' });
export type Readiness = z.infer<typeof Readiness>;

const version = z.string().max(60);

export const ReadinessQuery = z.strictObject({
  kubernetesVersion: version.optional().describe("Another one than the cluster's, e.g. of an upgrade"),
});
export type ReadinessQuery = z.infer<typeof ReadinessQuery>;

const question = {
  clusterId: z.uuid().optional().describe('Whose hosts, version and registry mode are meant, where they are not given'),
  kubernetesVersion: version.optional(),
  hostIds: z.array(z.uuid()).min(1).max(1000).optional(),
  imageSetId: z.uuid().optional().describe('Without it the newest set that is defined for the version'),
  pull: z
    .enum(['none', 'sample', 'all'])
    .default('sample')
    .describe('sample: the smallest image of the set, by every host; all: every image'),
  fix: z.boolean().default(false).describe('First pushes what is missing from registered bundles, and only that'),
};

export const CreateReadinessCheck = z
  .strictObject(question)
  .refine(
    ({ clusterId, kubernetesVersion, hostIds }) =>
      clusterId !== undefined || (kubernetesVersion !== undefined && hostIds !== undefined),
    {
      message: 'give clusterId, or kubernetesVersion and hostIds',
    },
  )
  .meta({ id: 'CreateReadinessCheck' });
export type CreateReadinessCheck = z.infer<typeof CreateReadinessCheck>;

export const ReadinessCheck = z
  .object({
    id: z.uuid(),
    clusterId: z.uuid().nullable(),
    kubernetesVersion: z.string(),
    hostIds: z.array(z.uuid()),
    pull: question.pull,
    fix: z.boolean(),
    state: z.enum(jobStates),
    result: Readiness.nullable(),
    pushed: z.array(z.string()).describe('Upstream references that `fix` has pushed'),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'ReadinessCheck' });
export type ReadinessCheck = z.infer<typeof ReadinessCheck>;
export const ReadinessCheckPage = pageOf(ReadinessCheck, 'ReadinessCheckPage');
