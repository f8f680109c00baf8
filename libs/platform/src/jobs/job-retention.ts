import { In, LessThan, type ObjectLiteral, type Repository } from 'typeorm';
import { BackgroundLoop } from '../background-loop.js';
import type { Config } from '../config.js';
import { atomically, type ServiceDatabase } from '../database.js';
import { IdempotencyKeyEntity } from '../http/idempotency.entity.js';
import { JobEntity } from './job.entity.js';
import { endedStates } from './job.schema.js';

const dayMs = 86_400_000;
const jobsAtOnce = 200;
type Row = { id: string; jobId: string };

/**
 * Runs in workers: removes jobs that ended long ago, with the resources that tell of nothing else, such as pushes and
 * checks, and old answers to repeated requests. A job stays that any other row names, or whose resource one names.
 */
export class JobRetention extends BackgroundLoop {
  protected readonly pauseMs = 3_600_000;

  constructor(
    private readonly config: Config['jobs'],
    private readonly database: ServiceDatabase,
    private readonly history: readonly (new () => ObjectLiteral)[],
  ) {
    super();
  }

  protected round(): Promise<void> {
    return this.forgetOld();
  }

  /** Each job goes in one commit with what goes with it: a worker that is killed has left nothing half done. */
  async forgetOld(): Promise<void> {
    await this.forgetAnswers();
    const before = new Date(Date.now() - this.config.keepDays * dayMs).toISOString();
    let last = '';
    while (!this.isStopped) {
      const jobs = await this.jobs
        .createQueryBuilder('job')
        .where('job.state IN (:...states) AND job.finishedAt < :before AND job.id > :last', {
          states: endedStates,
          before,
          last,
        })
        .orderBy('job.id')
        .take(jobsAtOnce)
        .getMany();
      await this.forget(jobs.map(({ id }) => id));
      if (jobs.length < jobsAtOnce) return;
      last = jobs.at(-1)?.id ?? '';
    }
  }

  private get jobs(): Repository<JobEntity> {
    return this.database.dataSource.getRepository(JobEntity);
  }

  private async forget(jobIds: string[]): Promise<void> {
    const history = await Promise.all(
      this.history.map(async (entity) => {
        const rows = this.database.dataSource.getRepository<Row>(entity as never);
        return { rows, ofJobs: await rows.find({ where: { jobId: In(jobIds) }, select: { id: true, jobId: true } }) };
      }),
    );
    const resourcesOf = (id: string) =>
      history.map(({ rows, ofJobs }) => ({ rows, ids: ofJobs.filter((row) => row.jobId === id).map((row) => row.id) }));
    const named = await this.namedOf([...jobIds, ...history.flatMap(({ ofJobs }) => ofJobs.map(({ id }) => id))]);
    for (const id of jobIds) {
      const resources = resourcesOf(id).filter(({ ids }) => ids.length > 0);
      if ([id, ...resources.flatMap(({ ids }) => ids)].some((one) => named.has(one))) continue;
      // A retry may begin it again at any moment.
      const job = this.jobs
        .createQueryBuilder()
        .delete()
        .where({ id, state: In([...endedStates]) });
      const ofJob = resources.map(({ rows }) => rows.createQueryBuilder().delete().where({ jobId: id }));
      await atomically(this.database.dataSource, [job, ...ofJob]);
    }
  }

  /**
   * Which of these ids a row of something that lives on names, in whichever column, or a child the job that it is part
   * of. All ids are asked for at once: most of these columns have no index.
   */
  private async namedOf(ids: string[]): Promise<ReadonlySet<string>> {
    const named = new Set<string>();
    for (const { target, columns } of this.database.dataSource.entityMetadatas) {
      if (this.history.includes(target as never)) continue;
      const names = columns.map(({ propertyName }) => propertyName);
      for (const name of names.filter((one) => (target === JobEntity ? one === 'parentId' : one.endsWith('Id')))) {
        const rows = await this.database.dataSource
          .getRepository<Record<string, string>>(target as never)
          .find({ where: { [name]: In(ids) }, select: { [name]: true } });
        for (const row of rows) named.add(row[name] ?? '');
      }
    }
    return named;
  }

  private async forgetAnswers(): Promise<void> {
    const keys = this.database.dataSource.getRepository(IdempotencyKeyEntity);
    await keys.delete({
      createdAt: LessThan(new Date(Date.now() - this.config.idempotencyKeepDays * dayMs).toISOString()),
    });
    // Of versions whose digests had no key: the request could be found by trying.
    const { affected } = await keys
      .createQueryBuilder()
      .delete()
      .where('"requestDigest" NOT LIKE :keyed', { keyed: '%.%' })
      .execute();
    // What was deleted goes from the log of the database too.
    if (affected && this.database.dataSource.options.type !== 'postgres')
      await this.database.dataSource.query('PRAGMA wal_checkpoint(TRUNCATE)');
  }
}
