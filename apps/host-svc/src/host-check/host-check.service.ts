import { setTimeout as delay } from 'node:timers/promises';
import { getRegistry } from '@airdock/clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError, fromProblem, type Problem, toProblem } from '@airdock/core/errors';
import { parseReference } from '@airdock/core/oci/reference';
import { pollUntil } from '@airdock/core/poll-until';
import { ContainerdHost } from '@airdock/host/runtime/containerd-host';
import { DockerHost } from '@airdock/host/runtime/docker-host';
import { pullsAtOnce, type RuntimeHost } from '@airdock/host/runtime/runtime-host';
import { HostSystem } from '@airdock/host/system/host-system';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
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
import { requireRegistry } from '@airdock/registry/access/require-registry';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import pLimit from 'p-limit';
import type { Repository } from 'typeorm';
import type { Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import type { Tunnel } from '../tunnel/tunnel.schema.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import { HostCheckEntity } from './host-check.entity.js';
import type { Check, CreateHostCheck, HostCheck, HostCheckResult, Pull } from './host-check.schema.js';
import { type Inspection, inspectHost, type Look } from './inspect-host.js';

export const hostCheckJobType = 'host.check';
const hostsAtOnce = 8;
const requestsAtOnce = 8;
/** For everything that is asked of one host, and with pulls. */
const lookMs = 300_000;
const pullMs = 7_200_000;
const leadsSoonMs = 10_000;
const ownPortMs = 3_000;
const tryMs = 500;

export interface InspectOptions {
  /** When its state is known already. */
  tunnel?: Tunnel | undefined;
  asksRegistry?: boolean;
  /** Of a host that is to lose its tunnel nothing is tried. */
  tries?: boolean;
}

/** Looks at hosts, and lets them pull, without changing them. */
@Injectable()
export class HostCheckService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(HostCheckEntity, 'host') private readonly hostChecks: Repository<HostCheckEntity>,
    private readonly hosts: HostService,
    private readonly tunnels: TunnelService,
    private readonly jobs: JobsService,
    private readonly clients: ServiceClients,
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
    const wanted = await this.digestsOf(row.pull);
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
      const { checks, hasDocker, system: found } = await this.inspect(host, connection, signal);
      const isContainerd =
        host.configuration?.containerRuntime === 'containerd' ||
        (!hasDocker &&
          (host.configuration !== null || (!found.docker.isInstalled && found.containerd.version !== undefined)));
      result.checks = isContainerd ? checks.filter(({ name }) => name !== 'docker') : checks;
      const runtime = isContainerd ? new ContainerdHost(connection, signal) : new DockerHost(connection, signal);
      const inForce = await this.inForce(host, isContainerd, connection, signal);
      if (inForce) result.checks.push(inForce);
      const system = new HostSystem(connection, signal);
      if (wanted.size > 0 && (await this.tunnels.find(host.id)) && !(await this.leadsSoon(host.id, system, signal)))
        throw new AppError('tunnel_failed', {
          detail: `on the host 127.0.0.1:${this.config.registry.port} gives no answer of the registry`,
        });
      const limit = pLimit(pullsAtOnce);
      result.pulls = await Promise.all(
        [...wanted.keys()].map((reference) => limit(() => this.pullOne(runtime, reference, wanted))),
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

  /**
   * Looks at a host and keeps what was found. Where its `tunnel` is up the host asks the registry through it, unless
   * that is seen in another way.
   */
  async inspect(
    host: Host,
    connection: SshConnection,
    signal: AbortSignal,
    { tunnel, asksRegistry = true, tries: isTried = true }: InspectOptions = {},
  ): Promise<Inspection> {
    const { port } = this.config.registry;
    const wanted = tunnel ?? (await this.tunnels.find(host.id));
    const tries = isTried ? await this.triesFor(wanted) : { ports: [], sockets: false };
    const look = (ownsPort: boolean) =>
      inspectHost(connection, { port, ownsPort, asksRegistry: ownsPort && asksRegistry, tries, seenAt: now() }, signal);
    let inspection = await look(wanted?.state === 'up');
    // What took the port may be our own tunnel, which came up meanwhile and has yet to say so.
    if (inspection.isPortTaken && (await this.tunnels.isUpWithin(host.id, signal, ownPortMs)))
      inspection = await look(true);
    // Or another look at this host, which has just tried whether sshd lets us have it.
    else if (inspection.isPortTaken && tries.ports.length > 0 && (await delay(tryMs, true, { signal })))
      inspection = await look(false);
    await this.hosts.saveFacts(host.id, inspection.facts);
    return inspection;
  }

  /**
   * What of a tunnel is tried on a host: nothing that its own tunnel proves, or is about to. Where the registry is
   * elsewhere there is none.
   */
  private async triesFor(tunnel: Tunnel | undefined): Promise<Look['tries']> {
    const asked = await getRegistry({ client: this.clients.registry });
    if (asked.data?.sockets === null) return { ports: [], sockets: false };
    const { hostPort, packagePort } = this.tunnels.ports;
    return {
      ports: tunnel ? [] : [hostPort, ...(packagePort === null ? [] : [packagePort])],
      sockets: tunnel?.state !== 'up' || tunnel.hostEnd !== 'socket',
    };
  }

  /**
   * False when the tunnel is down, or is up and the host gets no answer: one that was taken over, or is of a worker
   * that was killed, may be back in a moment.
   */
  async leadsSoon(hostId: string, system: HostSystem, signal: AbortSignal): Promise<boolean> {
    const answer = await pollUntil({ everyMs: 500, timeoutMs: leadsSoonMs, signal }, async () => {
      if ((await this.tunnels.settled(hostId, signal))?.state !== 'up') return 'down';
      return (await this.leads(system)) && 'leads';
    });
    return answer === 'leads';
  }

  /** Asked from the host; where it has nothing to ask with, the state of the tunnel has to do. */
  async leads(system: HostSystem): Promise<boolean> {
    const status = await system.statusOf(`http://127.0.0.1:${this.config.registry.port}/v2/`);
    return status === undefined || status === 200;
  }

  /** What the registry holds under these references, or why that is not known. */
  private async digestsOf(references: readonly string[]): Promise<WantedDigests> {
    const wanted: WantedDigests = new Map(
      references.map((reference) => [
        reference,
        new AppError('image_not_found', { detail: `${reference} is not in the registry` }),
      ]),
    );
    if (references.length === 0) return wanted;
    try {
      const { address } = await requireRegistry(this.clients.registry, { waits: false, use: 'look' });
      await using registry = new RegistryClient(address);
      const limit = pLimit(requestsAtOnce);
      await Promise.all(
        [...wanted.keys()].map((text) =>
          limit(async () => {
            const { repository, tag, digest } = parseReference(text);
            const head = await registry.headManifest(repository, digest ?? tag ?? 'latest');
            if (head) wanted.set(text, head.digest);
          }),
        ),
      );
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      for (const reference of references) wanted.set(reference, error);
    }
    return wanted;
  }

  /**
   * One pull by the host's own runtime, its digest compared with what the registry holds. Never throws but for a broken
   * connection.
   */
  async pullOne(runtime: RuntimeHost, reference: string, known?: WantedDigests): Promise<Pull> {
    try {
      const wanted = (known ?? (await this.digestsOf([reference]))).get(reference);
      if (wanted instanceof AppError) throw wanted;
      const digest = await runtime.pull(reference);
      if (digest !== wanted)
        throw new AppError('host_pull_failed', {
          detail: `${reference}: the host got ${digest}, the registry holds ${wanted}`,
        });
      return { reference, digest, error: null };
    } catch (error) {
      if (error instanceof AppError && error.code === 'host_unreachable') throw error;
      return { reference, digest: null, error: toProblem(error) };
    }
  }
}

/** By reference: the digest that the registry holds, or why it is not known. */
type WantedDigests = Map<string, string | AppError>;

/** A host's problem as the job's, with the host's name. */
export function ofHost(hostName: string, problem: Problem): AppError {
  const { code, details } = fromProblem(problem);
  return new AppError(code, { ...details, detail: `${hostName}: ${details.detail ?? problem.title}`, host: hostName });
}
