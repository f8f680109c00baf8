import { getBundle } from '@airdock/adapters/api-clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { AppError, toProblem } from '@airdock/core/errors';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import pLimit from 'p-limit';
import type { Repository } from 'typeorm';
import { HostService } from '../host/host.service.js';
import { ofHost } from '../host-check/host-check.service.js';
import { ConfigureHost } from './configure-host.service.js';
import { HostConfigurationEntity } from './host-configuration.entity.js';
import type { CreateHostConfiguration, HostConfiguration, HostConfigurationResult } from './host-configuration.schema.js';

export const hostConfigurationJobType = 'host.configure';
const hostsAtOnce = 4;

/** configure-hosts: brings hosts into the state that their options ask for; a second run changes nothing. */
@Injectable()
export class HostConfigurationService {
  constructor(
    @InjectRepository(HostConfigurationEntity, 'host') private readonly configurations: Repository<HostConfigurationEntity>,
    private readonly hosts: HostService,
    private readonly configureHost: ConfigureHost,
    private readonly jobs: JobsService,
    private readonly clients: ServiceClients,
  ) {}

  async create(request: JobRequest, { hostIds, bundleIds, dryRun, ...options }: CreateHostConfiguration): Promise<Job> {
    await this.hosts.getAll(hostIds);
    for (const id of bundleIds) {
      const { data } = await getBundle({ client: this.clients.image, path: { id }, throwOnError: true });
      if (data.state !== 'ready') throw new AppError('bundle_not_ready', { detail: data.name, jobId: data.jobId });
    }
    const id = newId();
    const row = { id, hostIds, bundleIds, dryRun, options, results: null, jobId: request.id, createdAt: now() };
    return this.jobs.submit({ ...request, type: hostConfigurationJobType, resource: `/v1/host-configurations/${id}` }, [
      this.configurations.createQueryBuilder().insert().values(row),
    ]);
  }

  async list(query: PageQuery): Promise<Page<HostConfiguration>> {
    const { items, nextCursor } = await findPage(this.configurations, query);
    const jobs = await this.jobs.byIds(items.map(({ jobId }) => jobId));
    return { items: items.map((row) => toResource(row, jobs.get(row.jobId))), nextCursor };
  }

  async get(id: string): Promise<HostConfiguration> {
    const row = await getRow(this.configurations, id);
    return toResource(row, await this.jobs.find(row.jobId));
  }

  /** Configures all hosts; one that fails does not stop the others, and the job fails afterwards with the first failure. */
  async run({ resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const row = await getRow(this.configurations, resourceId);
    const hosts = await this.hosts.getAll(row.hostIds);
    let itemsDone = 0;
    progress({ phase: row.dryRun ? 'plan' : 'configure', itemsTotal: hosts.length });
    const limit = pLimit(hostsAtOnce);
    const results = await Promise.all(
      hosts.map((host) =>
        limit(async () => {
          const result: HostConfigurationResult = { hostId: host.id, hostName: host.name, steps: [], warnings: [], error: null };
          try {
            await this.configureHost.run(host, row, result, signal);
          } catch (error) {
            signal.throwIfAborted();
            result.error = toProblem(error);
          }
          itemsDone += 1;
          progress({ itemsDone });
          return result;
        }),
      ),
    );
    await this.configurations.update({ id: row.id }, columns({ results }));
    const failed = results.find(({ error }) => error);
    if (failed?.error) throw ofHost(failed.hostName, failed.error);
    return { hosts: results.length };
  }
}

const toResource = (row: HostConfigurationEntity, job: JobEntity | undefined): HostConfiguration => ({ ...row, state: job?.state ?? 'failed' });
