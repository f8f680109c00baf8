import type { FindOptionsWhere, Repository } from 'typeorm';
import { findPage, getRow, type Page, type PageQuery } from '../http/page.js';
import type { JobEntity } from './job.entity.js';
import type { JobState } from './job.schema.js';
import type { JobsService } from './jobs.service.js';

/** A row that a job works on: submitted in one commit with it, and shown with its state. */
interface RowOfJob {
  id: string;
  jobId: string;
}

type ToResource<Row, Resource> = (row: Row, state: JobState) => Resource | Promise<Resource>;

// A job that is not there any more will not go on.
const stateOf = (job: JobEntity | undefined): JobState => job?.state ?? 'failed';

/** The id of the resource that a job works on. */
export const idOfResource = ({ resource }: { resource: string }): string => resource.split('/').at(-1) ?? '';

/** The resource that is its row, with the state of its job. */
export const withState = <Row extends RowOfJob>(row: Row, state: JobState): Row & { state: JobState } => ({
  ...row,
  state,
});

/** One page of resources, newest first, each with the state of its job. */
export async function findPageWithState<Row extends RowOfJob, Resource>(
  rows: Repository<Row>,
  jobs: JobsService,
  query: PageQuery,
  toResource: ToResource<Row, Resource>,
  where: FindOptionsWhere<Row> = {},
): Promise<Page<Resource>> {
  const { items, nextCursor } = await findPage(rows, query, where);
  const found = await jobs.byIds(items.map(({ jobId }) => jobId));
  return { items: await Promise.all(items.map((row) => toResource(row, stateOf(found.get(row.jobId))))), nextCursor };
}

/** The resource with this id and the state of its job. Throws `resource_not_found`. */
export async function getWithState<Row extends RowOfJob, Resource>(
  rows: Repository<Row>,
  jobs: JobsService,
  id: string,
  toResource: ToResource<Row, Resource>,
): Promise<Resource> {
  const row = await getRow(rows, id);
  return toResource(row, stateOf(await jobs.find(row.jobId)));
}
