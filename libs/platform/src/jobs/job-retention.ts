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
      for (const { id } of jobs) await this.forget(id);
      if (jobs.length < jobsAtOnce) return;
      last = jobs.at(-1)?.id ?? '';
    }
  }

  private get jobs(): Repository<JobEntity> {
    return this.database.dataSource.getRepository(JobEntity);
  }

  private async forget(id: string): Promise<void> {
    if (await this.jobs.existsBy({ parentId: id })) return;
    const resources = await Promise.all(
      this.history.map(async (entity) => {
        const rows = this.database.dataSource.getRepository<Row>(entity as never);
        return { rows, ids: (await rows.find({ where: { jobId: id }, select: { id: true } })).map((row) => row.id) };
      }),
    );
    const found = resources.filter(({ ids }) => ids.length > 0);
    if (await this.isNamed([id, ...found.flatMap(({ ids }) => ids)])) return;
    // A retry may begin it again at any moment.
    const job = this.jobs
      .createQueryBuilder()
      .delete()
      .where({ id, state: In([...endedStates]) });
    const history = found.map(({ rows }) => rows.createQueryBuilder().delete().where({ jobId: id }));
    await atomically(this.database.dataSource, [job, ...history]);
  }

  /** Whether a row of something that lives on names the job or its resource, in whichever column. */
  private async isNamed(ids: string[]): Promise<boolean> {
    for (const { target, columns } of this.database.dataSource.entityMetadatas) {
      if (this.history.includes(target as never) || target === JobEntity) continue;
      const names = columns.map(({ propertyName }) => propertyName).filter((name) => name.endsWith('Id'));
      const where = names.map((name) => ({ [name]: In(ids) }));
      if (where.length > 0 && (await this.database.dataSource.getRepository(target).existsBy(where))) return true;
    }
    return false;
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
