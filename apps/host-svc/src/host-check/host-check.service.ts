import { AppError, fromProblem, type Problem, toProblem } from '@airdock/core/errors';
import { parseReference } from '@airdock/core/oci/reference';
import { ContainerdHost } from '@airdock/host/runtime/containerd-host';
import { DockerHost } from '@airdock/host/runtime/docker-host';
import { pullsAtOnce } from '@airdock/host/runtime/runtime-host';
import { HostSystem } from '@airdock/host/system/host-system';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState, withState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import pLimit from 'p-limit';
import type { Repository } from 'typeorm';
import type { Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostProbe, type WantedDigests } from '../host-probe/host-probe.service.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import { HostCheckEntity } from './host-check.entity.js';
import type { Check, CreateHostCheck, HostCheck, HostCheckResult } from './host-check.schema.js';

export const hostCheckJobType = 'host.check';
const hostsAtOnce = 8;
/** For everything that is asked of one host, and with pulls. */
const lookMs = 300_000;
const pullMs = 7_200_000;

/** Looks at hosts, and lets them pull, without changing them. */
@Injectable()
export class HostCheckService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(HostCheckEntity, 'host') private readonly hostChecks: Repository<HostCheckEntity>,
    private readonly hosts: HostService,
    private readonly tunnels: TunnelService,
    private readonly jobs: JobsService,
    private readonly probe: HostProbe,
  ) {}

  async create(request: JobRequest, { hostIds, pull }: CreateHostCheck): Promise<Job> {
    await this.hosts.getAll(hostIds);
    for (const reference of pull) parseReference(reference);
    const id = newId();
    const row = { id, hostIds, pull, results: null, jobId: request.id, createdAt: now() };
    return this.jobs.submit({ ...request, type: hostCheckJobType, resource: `/v1/host-checks/${id}` }, [
      this.hostChecks.createQueryBuilder().insert().values(row),
    ]);
  }

  list(query: PageQuery): Promise<Page<HostCheck>> {
    return findPageWithState(this.hostChecks, this.jobs, query, withState);
  }

  get(id: string): Promise<HostCheck> {
    return getWithState(this.hostChecks, this.jobs, id, withState);
  }

  /** Waits most of its time for the slowest host. Whoever asks wants to know at once that one cannot be reached. */
  @RunsJob(hostCheckJobType, { concurrency: 32, maxFailures: 1 })
  async run({ resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const row = await getRow(this.hostChecks, resourceId);
    const hosts = await this.hosts.getAll(row.hostIds);
    let itemsDone = 0;
    progress({ phase: 'check', itemsTotal: hosts.length });
    const wanted = await this.probe.digestsOf(row.pull);
    const limit = pLimit(hostsAtOnce);
    const results = await Promise.all(
      hosts.map((host) =>
        limit(async () => {
          const result = await this.checkHost(host, wanted, signal);
          itemsDone += 1;
          progress({ itemsDone });
          return result;
        }),
      ),
    );
    await this.hostChecks.update({ id: row.id }, columns({ results }));
    const failed = results.find(({ error }) => error);
    if (failed?.error) throw ofHost(failed.hostName, failed.error);
    return { hosts: results.length, ok: results.every(({ ok }) => ok) };
  }

  private async checkHost(host: Host, wanted: WantedDigests, whole: AbortSignal): Promise<HostCheckResult> {
    const result: HostCheckResult = {
      hostId: host.id,
      hostName: host.name,
      ok: false,
      checks: [],
      pulls: [],
      error: null,
    };
    const timeMs = wanted.size > 0 ? pullMs : lookMs;
    const late = new AbortController();
    const timer = setTimeout(
      () => late.abort(new AppError('host_command_timeout', { detail: `the check after ${timeMs / 1000} s` })),
      timeMs,
    );
    const signal = AbortSignal.any([whole, late.signal]);
    try {
      await using connection = await this.hosts.connect(host, signal);
      const { checks, hasDocker, system: found } = await this.probe.inspect(host, connection, signal);
      const isContainerd =
        host.configuration?.containerRuntime === 'containerd' ||
        (!hasDocker &&
          (host.configuration !== null || (!found.docker.isInstalled && found.containerd.version !== undefined)));
      result.checks = isContainerd ? checks.filter(({ name }) => name !== 'docker') : checks;
      const runtime = isContainerd ? new ContainerdHost(connection, signal) : new DockerHost(connection, signal);
      const inForce = await this.inForce(host, isContainerd, connection, signal);
      if (inForce) result.checks.push(inForce);
      const system = new HostSystem(connection, signal);
      if (
        wanted.size > 0 &&
        (await this.tunnels.find(host.id)) &&
        !(await this.probe.canReachRegistrySoon(host.id, system, signal))
      )
        throw new AppError('tunnel_failed', {
          detail: `on the host 127.0.0.1:${this.config.registry.port} gives no answer of the registry`,
        });
      const limit = pLimit(pullsAtOnce);
      result.pulls = await Promise.all(
        [...wanted.keys()].map((reference) => limit(() => this.probe.pull(runtime, reference, wanted))),
      );
      result.ok =
        result.checks.every(({ status }) => status !== 'failure') && result.pulls.every(({ error }) => error === null);
    } catch (error) {
      whole.throwIfAborted();
      result.error = toProblem(late.signal.aborted ? late.signal.reason : error);
    } finally {
      clearTimeout(timer);
    }
    return result;
  }

  /** Whether the runtime of a configured host runs with what was written for it; undefined where nothing was. */
  private async inForce(
    { id, configuration }: Host,
    isContainerd: boolean,
    connection: SshConnection,
    signal: AbortSignal,
  ): Promise<Check | undefined> {
    const { naming, registry } = this.config;
    if (!configuration || configuration.skipDockerInstall || !(await this.tunnels.find(id))) return undefined;
    if (!isContainerd && !naming.includes('flat')) return undefined;
    const name = 'runtime configuration';
    try {
      if (isContainerd) await (await ContainerdHost.configured(connection, signal)).assertInForce();
      else await new DockerHost(connection, signal).assertInForce(`http://127.0.0.1:${registry.port}`);
      return { name, status: 'pass', seen: 'in force', nextStep: null };
    } catch (error) {
      if (!(error instanceof AppError) || error.family !== 'conflict') throw error;
      const { detail, title, nextStep } = toProblem(error);
      return { name, status: 'failure', seen: (detail ?? title).slice(0, 1000), nextStep: nextStep ?? null };
    }
  }
}

/** A host's problem as the job's, with the host's name. */
export function ofHost(hostName: string, problem: Problem): AppError {
  const { code, details } = fromProblem(problem);
  return new AppError(code, { ...details, detail: `${hostName}: ${details.detail ?? problem.title}`, host: hostName });
}
