import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState, withState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { ClusterService } from '../cluster/cluster.service.js';
import { ClusterDefaultsService } from '../cluster-defaults/cluster-defaults.service.js';
import { ClusterFacts } from '../cluster-facts/cluster-facts.service.js';
import type { CreateReadinessCheck, Readiness, ReadinessCheck, ReadinessQuery } from '../readiness/readiness.schema.js';
import { type Pulls, type ReadinessQuestion, ReadinessService } from '../readiness/readiness.service.js';
import { ReadinessCheckEntity } from './readiness-check.entity.js';

export const readinessCheckJobType = 'cluster.check-readiness';

/**
 * The question of readiness for a cluster or for hosts, answered at once from what is known, or by a job that lets
 * hosts pull.
 */
@Injectable()
export class ReadinessCheckService {
  constructor(
    @InjectRepository(ReadinessCheckEntity, 'cluster') private readonly checks: Repository<ReadinessCheckEntity>,
    private readonly clusters: ClusterService,
    private readonly defaults: ClusterDefaultsService,
    private readonly readiness: ReadinessService,
    private readonly facts: ClusterFacts,
    private readonly jobs: JobsService,
  ) {}

  /** From what is known. Throws `resource_not_found`. */
  async ofCluster(id: string, { kubernetesVersion }: ReadinessQuery): Promise<Readiness> {
    return this.readiness.answer(await this.questionOf({ clusterId: id, kubernetesVersion }));
  }

  /** Throws `resource_not_found`, `kubernetes_version_unsupported`, `registry_off`, `du_version_unsupported`. */
  async create(request: JobRequest, body: CreateReadinessCheck): Promise<Job> {
    const { kubernetesVersion, registryMode, hostIds, imageSetId } = await this.questionOf(body);
    await this.facts.hosts(hostIds);
    const id = newId();
    const row: ReadinessCheckEntity = {
      ...{
        id,
        clusterId: body.clusterId ?? null,
        kubernetesVersion,
        registryMode,
        imageSetId: imageSetId ?? null,
        hostIds: [...hostIds],
      },
      ...{ pull: body.pull, fix: body.fix, result: null, pushed: [], jobId: request.id, createdAt: now() },
    };
    return this.jobs.submit({ ...request, type: readinessCheckJobType, resource: `/v1/readiness-checks/${id}` }, [
      this.checks.createQueryBuilder().insert().values(columns(row)),
    ]);
  }

  private async questionOf(
    asked: Pick<CreateReadinessCheck, 'clusterId' | 'kubernetesVersion' | 'hostIds' | 'imageSetId'>,
  ): Promise<ReadinessQuestion> {
    const cluster = asked.clusterId ? await this.clusters.get(asked.clusterId) : undefined;
    const kubernetesVersion = asked.kubernetesVersion ?? cluster?.kubernetesVersion ?? '';
    const hostIds = asked.hostIds ?? cluster?.nodes.map(({ hostId }) => hostId) ?? [];
    // Of another version the answer is for the upgrade to it.
    const isOwn = cluster !== undefined && kubernetesVersion === cluster.kubernetesVersion;
    if (isOwn)
      return {
        kubernetesVersion,
        hostIds,
        registryMode: cluster.registryMode.effective,
        imageSetId: asked.imageSetId ?? cluster.imageSetId,
      };
    const { registryMode } = await this.defaults.forCluster(
      cluster?.registryMode.requested,
      kubernetesVersion,
      cluster?.registryMode.effective !== 'none',
    );
    return { kubernetesVersion, hostIds, registryMode, imageSetId: asked.imageSetId };
  }

  list(query: PageQuery): Promise<Page<ReadinessCheck>> {
    return findPageWithState(this.checks, this.jobs, query, withState);
  }

  get(id: string): Promise<ReadinessCheck> {
    return getWithState(this.checks, this.jobs, id, withState);
  }

  @RunsJob(readinessCheckJobType, { concurrency: 4 })
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const row = await getRow(this.checks, context.resourceId);
    if (row.fix)
      await this.readiness.pushMissing(row, context, async (images) => {
        row.pushed = [...new Set([...row.pushed, ...images])];
        await this.checks.update({ id: row.id }, columns<ReadinessCheckEntity>({ pushed: row.pushed }));
      });
    context.progress({ phase: 'check' });
    const references = await this.readiness.references(row, row.pull);
    let pulls: Pulls | undefined;
    if (references.length > 0) {
      context.progress({ phase: 'pull', itemsTotal: row.hostIds.length * references.length });
      const configured = (await this.facts.hosts(row.hostIds))
        .filter(({ configuration }) => configuration !== null)
        .map(({ id }) => id);
      const key = `readiness-${context.jobId}-${context.attempt}`;
      pulls = {
        kind: row.pull,
        results: configured.length > 0 ? await this.facts.pull(key, configured, references, context) : [],
      };
    }
    const result = await this.readiness.answer(row, pulls);
    await this.checks.update({ id: row.id }, columns<ReadinessCheckEntity>({ result }));
    return { ready: result.ready, problems: result.problems.length, missingImages: result.missingImages.length };
  }
}
