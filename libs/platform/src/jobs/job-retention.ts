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
 * checks, and old answers to repeated requests. A job that any other row names stays.
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

  protected async round(): Promise<void> {
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
    if ((await this.jobs.countBy({ parentId: id })) > 0 || (await this.isNamed(id))) return;
    // A retry may begin it again at any moment.
    const job = this.jobs
      .createQueryBuilder()
      .delete()
      .where({ id, state: In([...endedStates]) });
    const tables = this.history.map((entity) => this.database.dataSource.getRepository<Row>(entity as never));
    const found = await Promise.all(
      tables.map(async (rows) =>
        (await rows.countBy({ jobId: id })) > 0 ? [rows.createQueryBuilder().delete().where({ jobId: id })] : [],
      ),
    );
    await atomically(this.database.dataSource, [job, ...found.flat()]);
  }

  /** Whether a row of something that lives on names the job, in whichever column. */
  private async isNamed(id: string): Promise<boolean> {
    for (const { target, columns } of this.database.dataSource.entityMetadatas) {
      if (this.history.includes(target as never) || target === JobEntity) continue;
      const names = columns.map(({ propertyName }) => propertyName).filter((name) => /jobId$/i.test(name));
      if (
        names.length > 0 &&
        (await this.database.dataSource.getRepository(target).countBy(names.map((name) => ({ [name]: id })))) > 0
      )
        return true;
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
