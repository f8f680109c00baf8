import { getBundle } from '@airdock/clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import { chunks, columns, now, type Statement } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { isEnded, type Job } from '@airdock/platform/jobs/job.schema';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, type Repository } from 'typeorm';
import { ConfigurationOptions, type Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { ConfiguredHostEntity, HostConfigurationEntity } from './host-configuration.entity.js';
import { type CreateHostConfiguration, type HostConfiguration, Rollout } from './host-configuration.schema.js';

export const hostConfigurationJobType = 'host.configure';
/** Scheduled configurations that are kept. */
const keptScheduled = 24;
const scheduledAtOnce = 8;

/** What was asked of configure-hosts, and what became of it; ConfigureFleet does it. */
@Injectable()
export class HostConfigurationService {
  constructor(
    @InjectRepository(HostConfigurationEntity, 'host')
    private readonly configurations: Repository<HostConfigurationEntity>,
    @InjectRepository(ConfiguredHostEntity, 'host') private readonly members: Repository<ConfiguredHostEntity>,
    private readonly hosts: HostService,
    private readonly jobs: JobsService,
    private readonly clients: ServiceClients,
  ) {}

  /** Throws `resource_not_found`, `label_selector_invalid`, `bundle_not_ready`, `host_not_configured`. */
  async create(request: JobRequest, body: CreateHostConfiguration): Promise<Job> {
    const hosts = await this.hostsOf(body);
    for (const id of body.bundleIds) {
      const { data } = await getBundle({ client: this.clients.image, path: { id }, throwOnError: true });
      if (data.state !== 'ready') throw new AppError('bundle_not_ready', { detail: data.name, jobId: data.jobId });
    }
    const { action, hostIds: _, labelSelector: __, bundleIds, dryRun, rollout, bandwidth, ...options } = body;
    return this.submit(request, hosts, { action, bundleIds, dryRun, options, rollout, bandwidth });
  }

  /**
   * A host that is named must be configured to be configured again; of those that a selector finds the others are left
   * out.
   */
  private async hostsOf({ action, hostIds, labelSelector }: CreateHostConfiguration): Promise<Host[]> {
    const all = labelSelector ? await this.hosts.select(labelSelector) : await this.hosts.getAll([...new Set(hostIds)]);
    if (action !== 'reapply') return all;
    const configured = all.filter(({ configuration }) => configuration !== null);
    const others = all.filter(({ configuration }) => configuration === null).map(({ name }) => name);
    if (configured.length === 0 || (others.length > 0 && !labelSelector))
      throw new AppError('host_not_configured', {
        detail: `${others.slice(0, 20).join(', ')}${others.length > 20 ? ` and ${others.length - 20} more` : ''}`,
      });
    return configured;
  }

  /**
   * Begins a `reapply` of all configured hosts for the schedule, if `claim` still finds its row: of several workers one
   * gets it. Returns the id of the configuration; undefined when no host is configured, or another worker was faster.
   */
  async schedule(dryRun: boolean, claim: (configurationId: string) => Statement): Promise<string | undefined> {
    const hosts = await this.hosts.configured();
    if (hosts.length === 0) return undefined;
    const asked = {
      action: 'reapply' as const,
      bundleIds: [],
      dryRun,
      options: ConfigurationOptions.parse({}),
      bandwidth: {},
    };
    const id = newId();
    try {
      await this.submit(
        { id: newId(), createdBy: 'schedule' },
        hosts,
        { ...asked, rollout: Rollout.parse({ atOnce: scheduledAtOnce }) },
        id,
        [claim(id)],
      );
      return id;
    } catch (error) {
      if (error instanceof AppError && error.code === 'resource_changed') return undefined;
      throw error;
    }
  }

  /** True while a configuration has not ended. */
  async isRunning(id: string): Promise<boolean> {
    const row = await this.configurations.findOneBy({ id });
    const job = row ? await this.jobs.find(row.jobId) : undefined;
    return job !== undefined && !isEnded(job.state);
  }

  /**
   * Forgets all but the newest scheduled configurations, with their jobs; one that has not ended stays until the next
   * time.
   */
  async forgetScheduled(): Promise<void> {
    const old = await this.configurations.find({
      where: { scheduled: true },
      order: { id: 'DESC' },
      skip: keptScheduled,
      take: 100,
    });
    for (const { id, jobId } of old)
      await this.jobs.remove(jobId, [
        this.members.createQueryBuilder().delete().where({ configurationId: id }),
        this.configurations.createQueryBuilder().delete().where({ id }),
      ]);
  }

  private submit(
    request: { id: string; requestKey?: string | null; createdBy?: string },
    hosts: Host[],
    asked: Pick<HostConfigurationEntity, 'action' | 'bundleIds' | 'dryRun' | 'options' | 'rollout' | 'bandwidth'>,
    id = newId(),
    claim: Statement[] = [],
  ): Promise<Job> {
    const row: HostConfigurationEntity = {
      id,
      ...asked,
      scheduled: claim.length > 0,
      jobId: request.id,
      failedAt: null,
      createdAt: now(),
    };
    const members = hosts.map((host, position) =>
      columns<ConfiguredHostEntity>({
        id: newId(),
        configurationId: id,
        position,
        hostId: host.id,
        hostName: host.name,
        jobId: null,
        result: null,
      }),
    );
    return this.jobs.submit({ ...request, type: hostConfigurationJobType, resource: `/v1/host-configurations/${id}` }, [
      ...claim,
      this.configurations.createQueryBuilder().insert().values(columns(row)),
      ...[...chunks(members)].map((values) => this.members.createQueryBuilder().insert().values(values)),
    ]);
  }

  async list(query: PageQuery): Promise<Page<HostConfiguration>> {
    const { items, nextCursor } = await findPage(this.configurations, query);
    return { items: await this.toResources(items), nextCursor };
  }

  async get(id: string): Promise<HostConfiguration> {
    const [resource] = await this.toResources([await getRow(this.configurations, id)]);
    return resource as HostConfiguration;
  }

  private async toResources(rows: HostConfigurationEntity[]): Promise<HostConfiguration[]> {
    const members = await this.members.find({
      where: { configurationId: In(rows.map(({ id }) => id)) },
      order: { position: 'ASC' },
    });
    const jobs = await this.jobs.byIds([
      ...rows.map(({ jobId }) => jobId),
      ...members.flatMap(({ jobId }) => jobId ?? []),
    ]);
    const stateOf = (jobId: string) => jobs.get(jobId)?.state ?? 'failed';
    return rows.map((row) => ({
      ...row,
      state: stateOf(row.jobId),
      hosts: members
        .filter(({ configurationId }) => configurationId === row.id)
        .map(({ hostId, hostName, jobId, result }) => ({
          hostId,
          hostName,
          jobId,
          state: jobId ? stateOf(jobId) : 'waiting',
          ...(result ?? { steps: [], warnings: [], error: null }),
        })),
    }));
  }
}
