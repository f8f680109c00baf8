import { z } from 'zod';
import { ProblemDocument } from '../http/operation.js';
import { PageQuery, pageOf } from '../http/page.js';

export const jobStates = ['queued', 'running', 'succeeded', 'failed', 'cancelled'] as const;
export type JobState = (typeof jobStates)[number];

const part = {
  name: z.string(),
  bytesDone: z.number().int().nonnegative(),
  bytesTotal: z.number().int().nonnegative(),
};

export const JobProgressItem = z
  .object({ ...part, parts: z.array(z.object(part)).describe('E.g. the layers of an image; the first sixteen') })
  .meta({ id: 'JobProgressItem' });
export type JobProgressItem = z.infer<typeof JobProgressItem>;

export const JobProgress = z
  .object({
    phase: z.string().describe('What the job is doing, in a word or two'),
    percent: z.number().min(0).max(100).describe('Never runs backwards'),
    bytesDone: z.number().int().nonnegative(),
    bytesTotal: z.number().int().nonnegative(),
    itemsDone: z.number().int().nonnegative(),
    itemsTotal: z.number().int().nonnegative(),
    bytesPerSecond: z.number().int().nonnegative(),
    etaSeconds: z.number().int().nonnegative().nullable().describe('null while it cannot be told'),
    items: z
      .array(JobProgressItem)
      .describe('What is being worked on now, the first eight; what is finished is in the resource'),
  })
  .meta({ id: 'JobProgress' });
export type JobProgress = z.infer<typeof JobProgress>;

export const Job = z
  .object({
    id: z.uuid(),
    type: z.string().describe('service.verb, e.g. image.push'),
    state: z.enum(jobStates),
    progress: JobProgress,
    error: ProblemDocument.nullable(),
    result: z.record(z.string(), z.unknown()).nullable(),
    resource: z.string().describe('Path of the resource that the job works on'),
    children: z.array(z.uuid()),
    attempt: z.number().int().describe('How often a worker has taken it up'),
    createdAt: z.iso.datetime(),
    startedAt: z.iso.datetime().nullable(),
    finishedAt: z.iso.datetime().nullable(),
    createdBy: z.string(),
  })
  .meta({ id: 'Job' });
export type Job = z.infer<typeof Job>;

export const JobPage = pageOf(Job, 'JobPage');

export const JobQuery = z.strictObject({
  waitSeconds: z.coerce
    .number()
    .int()
    .min(0)
    .max(60)
    .default(0)
    .describe('Answer when the job has ended, at the latest after this time'),
});
export type JobQuery = z.infer<typeof JobQuery>;

export const JobListQuery = PageQuery.extend({
  state: z.enum(jobStates).optional(),
  type: z.string().max(60).optional(),
});
export type JobListQuery = z.infer<typeof JobListQuery>;

export const endedStates = ['succeeded', 'failed', 'cancelled'] as const satisfies readonly JobState[];

export const isEnded = (state: JobState): boolean => (endedStates as readonly JobState[]).includes(state);
