import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';

export const VerificationProblem = z
  .object({
    upstream: z.string(),
    /** What is wrong, most of it first. */
    kind: z
      .enum(['name_missing', 'name_changed', 'part_missing', 'part_damaged'])
      .describe(
        'A name leads nowhere, or elsewhere; a manifest or blob is not there, or has other bytes than its digest',
      ),
    subject: z
      .string()
      .describe('The local reference, the digest, or repository@digest for what one repository alone does not give'),
    actual: z.string().nullable().describe('What was found instead'),
  })
  .meta({ id: 'VerificationProblem' });
export type VerificationProblem = z.infer<typeof VerificationProblem>;

const images = z.array(z.string().min(1).max(512)).min(1).max(10_000);

export const Verification = z
  .object({
    id: z.uuid(),
    images: z.array(z.string()).nullable().describe('The selection; null for all'),
    quarantine: z.boolean(),
    state: z.enum(jobStates).describe('failed with images_damaged when there are problems'),
    problems: z.array(VerificationProblem).nullable(),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Verification' });
export type Verification = z.infer<typeof Verification>;
export const VerificationPage = pageOf(Verification, 'VerificationPage');

export const CreateVerification = z
  .strictObject({
    images: images
      .optional()
      .describe('Upstream references in the catalogue, or patterns with `*` and `?`. All without it'),
    quarantine: z
      .boolean()
      .default(false)
      .describe(
        "Sets damaged blobs aside in the registry's own folder, so that the next push brings them again; until then their images cannot be pulled",
      ),
  })
  .meta({ id: 'CreateVerification' });
export type CreateVerification = z.infer<typeof CreateVerification>;
