import { AppError } from '@airdock/core/errors';
import {
  Controller,
  Get,
  Inject,
  Injectable,
  Logger,
  type MessageEvent,
  Param,
  Post,
  Query,
  Res,
  Sse,
} from '@nestjs/common';
import { ApiOkResponse, ApiTags } from '@nestjs/swagger';
import { Observable } from 'rxjs';
import { StreamedAnswer } from '../http/access.js';
import { Operation, RawOperation } from '../http/operation.js';
import type { Page } from '../http/page.js';
import { isEnded, Job, JobListQuery, JobPage, JobQuery } from './job.schema.js';
import type { JobsService } from './jobs.service.js';

/** The jobs of all services in this process: one service's when it runs alone, all five's in the DU. */
export const JOB_SERVICES = Symbol('JOB_SERVICES');

const watchMs = 150;
/** So that both ends notice when the other one is gone. */
const heartbeatMs = 15_000;

/**
 * Finds a job's service, and tells watchers about changes by comparing revisions: one query per service for all of
 * them, a few times a second and whenever this process has changed a watched job.
 */
@Injectable()
export class JobDirectory {
  private readonly watchers = new Map<string, Set<{ seen: number; changed: () => void }>>();
  private readonly logger = new Logger('jobs');
  private timer: NodeJS.Timeout | undefined;

  constructor(@Inject(JOB_SERVICES) readonly services: JobsService[]) {
    for (const service of services) service.claims.changed.add((id) => this.watchers.has(id) && void this.compare());
  }

  /** Throws `resource_not_found`. */
  async serviceOf(id: string): Promise<JobsService> {
    for (const service of this.services) if (await service.find(id)) return service;
    throw new AppError('resource_not_found', { detail: `no job with id ${id.slice(0, 60)}` });
  }

  /**
   * Calls back whenever the job's revision is another one than before, first than `seen`, until the returned function
   * is called.
   */
  watch(id: string, seen: number, changed: () => void): () => void {
    const watcher = { seen, changed };
    const watchers = this.watchers.get(id) ?? new Set();
    this.watchers.set(id, watchers.add(watcher));
    this.timer ??= setTimeout(() => void this.compare(), watchMs);
    return () => {
      watchers.delete(watcher);
      if (watchers.size === 0) this.watchers.delete(id);
    };
  }

  private async compare(): Promise<void> {
    clearTimeout(this.timer);
    try {
      const ids = [...this.watchers.keys()];
      for (const service of ids.length > 0 ? this.services : []) {
        for (const [id, revision] of await service.revisions(ids)) {
          for (const watcher of this.watchers.get(id) ?? []) {
            if (watcher.seen === revision) continue;
            watcher.seen = revision;
            watcher.changed();
          }
        }
      }
    } catch (error) {
      this.logger.warn({ err: error }, 'the job table could not be read; trying again');
    }
    clearTimeout(this.timer);
    this.timer = this.watchers.size > 0 ? setTimeout(() => void this.compare(), watchMs) : undefined;
  }
}

/** `/v1/jobs` of all services. */
@ApiTags('jobs')
@Controller({ path: 'jobs', version: '1' })
export class JobsController {
  constructor(private readonly directory: JobDirectory) {}

  @Get()
  @Operation({ id: 'listJobs', summary: 'Jobs, newest first', returns: JobPage })
  async list(@Query({ schema: JobListQuery }) query: JobListQuery): Promise<Page<Job>> {
    const wanted = { ...query, limit: query.limit + 1 };
    const jobs = (await Promise.all(this.directory.services.map((service) => service.list(wanted))))
      .flat()
      .sort((a, b) => (a.id < b.id ? 1 : -1));
    const items = jobs.slice(0, query.limit);
    return { items, nextCursor: jobs.length > query.limit ? items.at(-1)?.id : undefined };
  }

  @Get(':id')
  @Operation({
    id: 'getJob',
    summary: 'One job; with waitSeconds it answers when the job has ended or the time is over',
    returns: Job,
  })
  async get(
    @Param('id') id: string,
    @Query({ schema: JobQuery }) { waitSeconds }: JobQuery,
    @Res({ passthrough: true }) reply: { raw: NodeJS.EventEmitter },
  ): Promise<Job> {
    const service = await this.directory.serviceOf(id);
    const row = await service.find(id);
    if (!row || waitSeconds === 0 || isEnded(row.state)) return service.get(id);
    let unwatch: () => void = () => undefined;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(resolve, waitSeconds * 1000);
      // Whoever asked has gone.
      reply.raw.once('close', () => {
        clearTimeout(timer);
        resolve();
      });
      const look = async () => {
        if (!isEnded((await service.get(id)).state)) return;
        clearTimeout(timer);
        resolve();
      };
      unwatch = this.directory.watch(id, row.revision, () => void look().catch(reject));
    }).finally(() => unwatch());
    return service.get(id);
  }

  @Sse(':id/events')
  @StreamedAnswer()
  @RawOperation({
    id: 'streamJob',
    summary: 'Server-sent events: the job at once, then at each change; the stream ends with the job',
  })
  @ApiOkResponse({
    description: 'Events named job, their data the job',
    content: { 'text/event-stream': { schema: { $ref: '#/components/schemas/Job' } } },
  })
  async events(@Param('id') id: string): Promise<Observable<MessageEvent>> {
    // What is not there is answered as everywhere, before a stream begins.
    const service = await this.directory.serviceOf(id);
    return new Observable((subscriber) => {
      let unwatch: () => void = () => undefined;
      const heartbeat = setInterval(() => subscriber.next({ comment: 'heartbeat' }), heartbeatMs);
      void (async () => {
        try {
          const send = async (): Promise<number> => {
            const row = await service.find(id);
            if (!row || subscriber.closed) return -1;
            subscriber.next({ id: String(row.revision), type: 'job', data: Job.parse(await service.toResource(row)) });
            if (isEnded(row.state)) subscriber.complete();
            return row.revision;
          };
          const sent = await send();
          if (!subscriber.closed)
            unwatch = this.directory.watch(
              id,
              sent,
              () => void send().catch((error: unknown) => subscriber.error(error)),
            );
        } catch (error) {
          subscriber.error(error);
        }
      })();
      return () => {
        clearInterval(heartbeat);
        unwatch();
      };
    });
  }

  @Post(':id/cancel')
  @Operation({ id: 'cancelJob', summary: 'Stop a job; what it has completed stays', returns: Job, status: 202 })
  async cancel(@Param('id') id: string): Promise<Job> {
    return (await this.directory.serviceOf(id)).cancel(id);
  }

  @Post(':id/retry')
  @Operation({
    id: 'retryJob',
    summary: 'Queue a failed or cancelled job again; it continues where it stopped',
    returns: Job,
    status: 202,
  })
  async retry(@Param('id') id: string): Promise<Job> {
    return (await this.directory.serviceOf(id)).retry(id);
  }
}
