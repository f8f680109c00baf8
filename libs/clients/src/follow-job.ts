import { AppError, fromProblem } from '@airdock/core/errors';
import { getJob } from './generated/sdk.gen.js';
import type { Job } from './generated/types.gen.js';
import type { Client } from './service-clients.js';

/**
 * Waits by long-polls until a job of another service has ended, in whatever way; an abort ends the waiting, not the
 * job.
 */
export async function followJob(
  client: Client,
  id: string,
  signal: AbortSignal,
  onProgress: (job: Job) => void = () => undefined,
): Promise<Job> {
  for (;;) {
    const { data } = await getJob({ client, path: { id }, query: { waitSeconds: 5 }, signal, throwOnError: true });
    onProgress(data);
    if (data.finishedAt) return data;
  }
}

/** Throws the problem of a job that has not succeeded. */
export function assertSucceeded({ id, type, error }: Job): void {
  if (error?.code === 'job_cancelled') throw new AppError('job_cancelled', { detail: `${type} ${id}`, jobId: id });
  if (error) throw fromProblem(error);
}
