import { getJob, streamJob } from '@airdock/clients/generated/sdk.gen';
import type { Job } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { fromProblem } from '@airdock/core/errors';
import { waitFor } from '@airdock/testing/servers';

/** Waits for the end of a job by long-polls, and checks on the way that its progress never runs backwards. */
export async function endOf(
  client: Client,
  id: string,
  onProgress: (job: Job) => void = () => undefined,
): Promise<Job> {
  let last = { percent: 0, bytesDone: 0, itemsDone: 0 };
  for (let round = 0; round < 600; round++) {
    const { data: job } = await getJob({ client, path: { id }, query: { waitSeconds: 1 }, throwOnError: true });
    last = notBackwards(last, job);
    onProgress(job);
    if (job.finishedAt) return job;
  }
  throw new Error(`job ${id} did not end`);
}

/** As `endOf`, by server-sent events. */
export async function endOfStream(
  client: Client,
  id: string,
  onProgress: (job: Job) => void = () => undefined,
): Promise<Job> {
  const { stream } = await streamJob({ client, path: { id }, throwOnError: true });
  let last = { percent: 0, bytesDone: 0, itemsDone: 0 };
  let job: Job | undefined;
  for await (const event of stream) {
    job = event as unknown as Job;
    last = notBackwards(last, job);
    onProgress(job);
    if (job.finishedAt) return job;
  }
  throw new Error(`the events of job ${id} ended with ${job?.state}`);
}

/** The job's end, which must be a success. */
export async function success(client: Client, started: Promise<{ data: Job }> | Job): Promise<Job> {
  const job = await endOf(client, 'id' in started ? started.id : (await started).data.id);
  if (job.error) throw fromProblem(job.error);
  return job;
}

/**
 * Waits until a job has done between 5 and 90 percent. Throws when it ends before: then the test needs a larger bundle.
 */
export function midway(client: Client, id: string, { from = 5, to = 90 } = {}): Promise<Job> {
  let seen: Job | undefined;
  const look = async () => {
    seen = (await getJob({ client, path: { id }, throwOnError: true })).data;
    return seen.state === 'running' && seen.progress.percent >= from && seen.progress.percent <= to ? seen : undefined;
  };
  const giveUp = () =>
    seen?.finishedAt || (seen?.progress.percent ?? 0) > to
      ? new Error(`job ${id} was ${seen?.state} at ${seen?.progress.percent} % before it was midway`)
      : undefined;
  return waitFor(look, { what: `job ${id} to be midway`, timeoutMs: 60_000, intervalMs: 10, giveUp });
}

export const resourceId = (job: Job): string => job.resource.split('/').at(-1) ?? '';

/** Throws when a job's progress is less than it was. Returns the progress. */
export function notBackwards(last: { percent: number; bytesDone: number; itemsDone: number }, { id, progress }: Job) {
  for (const key of ['percent', 'bytesDone', 'itemsDone'] as const)
    if (progress[key] < last[key]) throw new Error(`job ${id}: ${key} ran backwards, ${last[key]} to ${progress[key]}`);
  return progress;
}
