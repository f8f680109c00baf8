import { AppError, toProblem } from '@airdock/core/errors';
import { columns, now } from '@airdock/platform/database';
import { getRow } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import { isEnded, type JobProgressItem } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobWatch } from '@airdock/platform/jobs/job-watch';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { RateLimit } from '@airdock/ssh/connection/rate-limit';
import { Injectable, Logger } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { IsNull, type Repository } from 'typeorm';
import type { Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostLock } from '../host/host-lock.service.js';
import { ofHost } from '../host-check/host-check.service.js';
import { ConfigureHost } from './configure-host.service.js';
import { driftAfter, driftWord } from './drift.js';
import { ConfiguredHostEntity, HostConfigurationEntity } from './host-configuration.entity.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';
import { hostConfigurationJobType } from './host-configuration.service.js';
import { UnconfigureHost } from './unconfigure-host.service.js';

export const configureHostJobType = 'host.configure-host';

/**
 * The rollout of a configuration: a child job for each host, so many at once, canaries first, and no further one when
 * too many fail.
 */
@Injectable()
export class ConfigureFleet {
  private readonly logger = new Logger(ConfigureFleet.name);
  private readonly totals = new Map<string, { users: number; limit: RateLimit | undefined }>();

  constructor(
    @InjectRepository(HostConfigurationEntity, 'host')
    private readonly configurations: Repository<HostConfigurationEntity>,
    @InjectRepository(ConfiguredHostEntity, 'host') private readonly members: Repository<ConfiguredHostEntity>,
    private readonly hosts: HostService,
    private readonly lock: HostLock,
    private readonly configureHost: ConfigureHost,
    private readonly unconfigureHost: UnconfigureHost,
    private readonly jobs: JobsService,
  ) {}

  /**
   * Begins children, and waits for their ends. A run after a crash goes on with them; one after a failure is a retry,
   * and begins again what failed or was never begun. Throws the first failure of a host.
   */
  // It waits most of its time; many may run beside each other. The failure is of a host, whose own job has tried.
  @RunsJob(hostConfigurationJobType, { concurrency: 16, maxFailures: 1 })
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const { jobId, resourceId, signal, progress } = context;
    const { id, rollout, dryRun, failedAt } = await getRow(this.configurations, resourceId);
    const members = await this.members.find({ where: { configurationId: id }, order: { position: 'ASC' } });
    const ended = new Map<string, JobEntity>();
    const running = new Map<string, ConfiguredHostEntity>();
    using watch = new JobWatch(this.jobs, running);
    let seen = await this.jobs.byIds(members.flatMap((member) => member.jobId ?? []));
    if (failedAt) {
      for (const job of seen.values())
        if (job.state === 'failed' || job.state === 'cancelled') await this.jobs.retry(job.id);
      await this.configurations.update({ id }, { failedAt: null });
      seen = await this.jobs.byIds([...seen.keys()]);
    }
    for (const member of members) if (member.jobId) running.set(member.jobId, member);
    const waiting = members.filter(({ jobId: begun }) => !begun);
    const inOrder = (job: JobEntity) => members.findIndex((member) => member.jobId === job.id);
    progress({ phase: dryRun ? 'plan' : rollout.canary > 0 ? 'canary' : 'configure', itemsTotal: members.length });

    for (;;) {
      for (const job of seen.values()) {
        if (!isEnded(job.state)) continue;
        ended.set(job.id, job);
        running.delete(job.id);
      }
      const failures = [...ended.values()]
        .filter(({ state }) => state !== 'succeeded')
        .sort((a, b) => inOrder(a) - inOrder(b));
      const isCanary = ended.size < rollout.canary;
      const isStopped =
        failures.length > members.length * rollout.maxFailureShare ||
        failures.some((job) => inOrder(job) < rollout.canary);
      progress({
        itemsDone: ended.size,
        ...(isCanary || dryRun ? {} : { phase: 'configure' }),
        items: () =>
          [...running.values()]
            .slice(0, 8)
            .map(({ jobId: begun, hostName }) => toItem(hostName, seen.get(begun ?? ''))),
      });
      const mayBegin = Math.min(
        rollout.atOnce - running.size,
        isCanary ? rollout.canary - ended.size - running.size : waiting.length,
      );
      if (!isStopped)
        for (const member of waiting.splice(0, Math.max(0, mayBegin)))
          running.set(await this.begin(member, jobId), member);
      if (running.size === 0) {
        await this.finish(id, members, failures, waiting.length);
        return { hosts: members.length };
      }
      await watch.wait(signal);
      if (signal.aborted) await this.abort(id, running, watch, signal);
      seen = await this.jobs.byIds([...running.keys()]);
    }
  }

  /**
   * Returns the id of the child job, which is stored together with its member: one that was begun is never begun again.
   */
  private async begin(member: ConfiguredHostEntity, parentId: string): Promise<string> {
    const id = newId();
    const claim = this.members
      .createQueryBuilder()
      .update()
      .set({ jobId: id })
      .where({ id: member.id, jobId: IsNull() });
    const resource = `/v1/host-configurations/${member.configurationId}/hosts/${member.id}`;
    await this.jobs.submit({ id, type: configureHostJobType, resource, parentId }, [claim]);
    member.jobId = id;
    return id;
  }

  private async finish(
    id: string,
    members: ConfiguredHostEntity[],
    failures: JobEntity[],
    notBegun: number,
  ): Promise<void> {
    const [first] = failures;
    if (!first) return;
    await this.configurations.update({ id }, { failedAt: now() });
    const { hostName = '' } = members.find(({ jobId }) => jobId === first.id) ?? {};
    const { code, details } = ofHost(hostName, first.error ?? toProblem(new AppError('internal_error')));
    throw new AppError(code, { ...details, failed: failures.length, notBegun });
  }

  /** A cancelled configuration ends when its hosts have; one that only moves to another worker leaves them alone. */
  private async abort(
    id: string,
    running: Map<string, ConfiguredHostEntity>,
    watch: JobWatch,
    signal: AbortSignal,
  ): Promise<never> {
    if (signal.reason instanceof AppError && signal.reason.code === 'job_cancelled') {
      for (const jobId of running.keys())
        await this.jobs.cancel(jobId).catch((error: unknown) => {
          if (!(error instanceof AppError) || error.code !== 'job_finished') throw error;
        });
      const deadline = Date.now() + 10_000;
      while (Date.now() < deadline) {
        const unended = [...(await this.jobs.byIds([...running.keys()])).values()].filter(
          ({ state }) => !isEnded(state),
        );
        if (unended.length === 0) break;
        await watch.wait(AbortSignal.timeout(Math.max(1, deadline - Date.now())));
      }
      await this.configurations.update({ id }, { failedAt: now() });
    }
    throw signal.reason;
  }

  /** One host: its child job. What was done is kept also when it fails. */
  // Whoever asks wants to know at once that a host cannot be reached.
  @RunsJob(configureHostJobType, { concurrency: 64, maxFailures: 1 })
  async runHost({ jobId, resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const member = await getRow(this.members, resourceId);
    const configuration = await getRow(this.configurations, member.configurationId);
    const result: HostConfigurationResult = { steps: [], warnings: [], error: null };
    let host: Host | undefined;
    try {
      progress({ phase: 'wait for the host' });
      await this.lock.acquire(member.hostId, jobId, signal);
      host = await this.hosts.get(member.hostId);
      await this.configureOrUnconfigure(host, configuration, result, signal);
      return { steps: Object.fromEntries(result.steps.map(({ name, status }) => [name, status])) };
    } catch (error) {
      result.error = toProblem(signal.aborted ? signal.reason : error);
      throw error;
    } finally {
      await this.members.update({ id: member.id }, columns<ConfiguredHostEntity>({ result }));
      // What was cancelled, or goes on elsewhere, tells nothing of the host.
      if (host && !signal.aborted) await this.noteDrift(host, configuration, result);
    }
  }

  private async configureOrUnconfigure(
    host: Host,
    configuration: HostConfigurationEntity,
    result: HostConfigurationResult,
    signal: AbortSignal,
  ): Promise<void> {
    const { action, dryRun } = configuration;
    if (action === 'unconfigure') return this.unconfigureHost.run(host, dryRun, result, signal);
    const options = action === 'reapply' ? host.configuration : configuration.options;
    if (!options) throw new AppError('host_not_configured');
    await this.withLimits(configuration, (limits) =>
      this.configureHost.run(host, { ...configuration, options }, result, signal, limits),
    );
  }

  /** A `configure` that fails, or is only planned, tells nothing of the configuration that the host has. */
  private async noteDrift(
    host: Host,
    { id, action, dryRun }: HostConfigurationEntity,
    result: HostConfigurationResult,
  ): Promise<void> {
    if (action !== 'reapply' && (action !== 'configure' || dryRun || result.error)) return;
    const drift = driftAfter(host.drift, result, dryRun, id);
    await this.hosts.saveDrift(host.id, drift);
    const [before, after] = [driftWord(host.drift), driftWord(drift)];
    if (before === after) return;
    const about = {
      hostId: host.id,
      configurationId: id,
      targets: drift.changes.map(({ target }) => target),
      code: drift.error?.code,
    };
    if (after === 'as configured') this.logger.log(about, `${host.name} is as configured again`);
    else if (after === 'drifted') this.logger.warn(about, `${host.name} has drifted from its configuration`);
    else this.logger.warn(about, `it is not known whether ${host.name} has drifted from its configuration`);
  }

  /** The limit of all hosts together is one for all that this process configures. */
  private async withLimits(
    { id, bandwidth }: HostConfigurationEntity,
    work: (limits: RateLimit[]) => Promise<void>,
  ): Promise<void> {
    const { totalBytesPerSecond, perHostBytesPerSecond } = bandwidth;
    const total = this.totals.get(id) ?? {
      users: 0,
      limit: totalBytesPerSecond ? new RateLimit(totalBytesPerSecond) : undefined,
    };
    this.totals.set(id, total);
    total.users += 1;
    try {
      await work(
        [total.limit, perHostBytesPerSecond ? new RateLimit(perHostBytesPerSecond) : undefined].filter(
          (limit) => limit !== undefined,
        ),
      );
    } finally {
      total.users -= 1;
      if (total.users === 0) this.totals.delete(id);
    }
  }
}

const toItem = (name: string, job: JobEntity | undefined): JobProgressItem => ({
  name,
  bytesDone: job?.progress.bytesDone ?? 0,
  bytesTotal: job?.progress.bytesTotal ?? 0,
  parts: [],
});
