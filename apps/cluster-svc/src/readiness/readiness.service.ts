import type { Host, HostCheckResult, ImageSet, SetImage, Tunnel } from '@airdock/clients/generated/types.gen';
import { AppError, toProblem } from '@airdock/core/errors';
import { plainVersion } from '@airdock/core/kubernetes/kubeadm-config';
import { withoutDigest } from '@airdock/core/oci/reference';
import { obstacleOn, type RunsWhere, runsOn } from '@airdock/core/oci/runs';
import type { RegistryMode } from '@airdock/core/registry-mode';
import { now } from '@airdock/platform/database';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { Injectable } from '@nestjs/common';
import { ClusterDefaultsService } from '../cluster-defaults/cluster-defaults.service.js';
import { ClusterFacts, isArtifact } from '../cluster-facts/cluster-facts.service.js';
import type { MissingImage, Readiness, ReadyHost } from './readiness.schema.js';

export interface ReadinessQuestion {
  kubernetesVersion: string;
  registryMode: RegistryMode;
  hostIds: readonly string[];
  imageSetId?: string | null | undefined;
}

/**
 * Would a cluster stand up, with no network, now? From what is known, and from what hosts have pulled for the answer.
 */
@Injectable()
export class ReadinessService {
  constructor(
    private readonly facts: ClusterFacts,
    private readonly defaults: ClusterDefaultsService,
  ) {}

  async answer(question: ReadinessQuestion, pulls?: Pulls): Promise<Readiness> {
    return (await this.look(question, pulls)).answer;
  }

  /** The answer, and the images of the set as the registry was asked for them. */
  async look(
    { kubernetesVersion, registryMode, hostIds, imageSetId }: ReadinessQuestion,
    pulls?: Pulls,
  ): Promise<{ answer: Readiness; images: SetImage[] }> {
    const usesRegistry = registryMode !== 'none';
    const [hosts, tunnels, set] = await Promise.all([
      this.facts.hosts(hostIds),
      this.facts.tunnels(hostIds),
      usesRegistry ? this.facts.imageSetOf(kubernetesVersion, imageSetId) : undefined,
    ]);
    const images = set ? await this.facts.imagesOf(set.id) : [];
    const missingImages = missingFor(images, hosts.flatMap(whereOf));
    const readyHosts = hosts.map((host) =>
      readyHost(
        host,
        tunnels.get(host.id),
        pulls?.results.find(({ hostId }) => hostId === host.id),
      ),
    );
    const problems = [
      ...setProblems(kubernetesVersion, usesRegistry, set, missingImages, images.length),
      ...readyHosts.flatMap((host) => hostProblems(host, registryMode)),
    ];
    for (const { hostName, error } of pulls?.results ?? [])
      if (error) problems.push({ ...error, detail: `${hostName}: ${error.detail ?? error.title}` });
    const answer: Readiness = {
      ready: problems.length === 0,
      kubernetesVersion,
      registryMode,
      imageSet: set ? { id: set.id, name: set.name, images: images.length } : null,
      missingImages,
      hosts: readyHosts,
      problems,
      pull: pulls?.kind ?? 'none',
      seenAt: now(),
    };
    return { answer, images };
  }

  /**
   * References that hosts should pull to prove that they can: the smallest image that is there and runs on all of them,
   * or all images.
   */
  async references(
    { kubernetesVersion, registryMode, imageSetId, hostIds }: ReadinessQuestion,
    kind: Readiness['pull'],
  ): Promise<string[]> {
    const set =
      kind !== 'none' && registryMode !== 'none'
        ? await this.facts.imageSetOf(kubernetesVersion, imageSetId)
        : undefined;
    if (!set) return [];
    const { fields } = await this.defaults.get();
    const images = await this.facts.imagesOf(set.id);
    const wheres = kind === 'sample' ? (await this.facts.hosts(hostIds)).flatMap(whereOf) : [];
    const present = images
      .filter((image) => image.state === 'present' && !isArtifact(image))
      .sort((a, b) => (a.sizeBytes ?? 0) - (b.sizeBytes ?? 0));
    const sample = present.find((image) => wheres.every((where) => runsOn(image, where))) ?? present[0];
    return this.facts.references(kind === 'sample' ? (sample ? [sample] : []) : present, fields.k8sPrivateRegistry);
  }

  /**
   * Pushes what is missing and in registered bundles, from as few bundles as possible. What no bundle has is told by
   * the answer afterwards.
   */
  async pushMissing(
    question: ReadinessQuestion,
    { jobId, attempt, signal, progress }: JobContext,
    onPushed: (upstreams: string[]) => Promise<void> = async () => undefined,
  ): Promise<void> {
    const plan = planPushes((await this.answer(question)).missingImages);
    progress({ phase: 'push', itemsTotal: plan.length });
    for (const [index, { bundleId, images }] of plan.entries()) {
      await this.facts.push(`push-${jobId}-${attempt}-${bundleId}`, bundleId, images.map(withoutDigest), signal);
      await onPushed(images);
      progress({ itemsDone: index + 1 });
    }
  }
}

/** Which bundles to push what from: again and again the bundle that has the most of what is left. */
export function planPushes(
  missing: readonly Pick<MissingImage, 'upstream' | 'bundles'>[],
): { bundleId: string; images: string[] }[] {
  const plan: { bundleId: string; images: string[] }[] = [];
  let uncovered = missing.filter(({ bundles }) => bundles.length > 0);
  while (uncovered.length > 0) {
    const byBundle = new Map<string, string[]>();
    for (const { upstream, bundles } of uncovered)
      for (const { id } of bundles) byBundle.set(id, [...(byBundle.get(id) ?? []), upstream]);
    const [best] = [...byBundle].sort(([, a], [, b]) => b.length - a.length);
    if (!best) break;
    const [bundleId, images] = best;
    plan.push({ bundleId, images });
    uncovered = uncovered.filter(({ upstream }) => !images.includes(upstream));
  }
  return plan;
}

/** What hosts have pulled for an answer. */
export interface Pulls {
  kind: Readiness['pull'];
  results: HostCheckResult[];
}

/** What of a host decides whether an image runs there; nothing until it was checked. */
function whereOf({ facts, configuration }: Host): RunsWhere[] {
  if (!facts) return [];
  const isDocker = configuration?.containerRuntime !== 'containerd' && facts.dockerVersion !== null;
  const version = isDocker ? facts.dockerVersion : facts.containerdVersion;
  return [
    {
      platform: `linux/${facts.architecture}`,
      ...(version ? { runtime: { name: isDocker ? 'docker' : 'containerd', version } } : {}),
    },
  ];
}

/** What the registry cannot serve to all these hosts. A chart or a file is needed there, and on no host. */
function missingFor(images: readonly SetImage[], hosts: readonly RunsWhere[]): MissingImage[] {
  const platformsOf = (some: readonly RunsWhere[]) => [...new Set(some.map(({ platform }) => platform))];
  return images.flatMap((image) => {
    const { upstream, state, bundles } = image;
    const obstacles = isArtifact(image) ? [] : hosts.map((where) => obstacleOn(image, where));
    const lacking = hosts.filter((_, index) => obstacles[index] !== undefined);
    if (state === 'present' && lacking.length === 0) return [];
    const complete = bundles.filter(
      (bundle) => bundle.platforms.length === 0 || hosts.every((where) => runsOn(bundle, where)),
    );
    return [
      {
        upstream,
        state:
          state !== 'present'
            ? state
            : obstacles.includes('compression')
              ? ('wrongRuntime' as const)
              : ('wrongPlatform' as const),
        platforms: state === 'present' ? platformsOf(lacking) : platformsOf(hosts),
        bundles: complete.map(({ id, name }) => ({ id, name })),
      },
    ];
  });
}

function readyHost(host: Host, tunnel: Tunnel | undefined, pulled: HostCheckResult | undefined): ReadyHost {
  return {
    hostId: host.id,
    name: host.name,
    architecture: host.facts?.architecture ?? null,
    configured: host.configuration !== null,
    drifted: (host.drift?.changes.length ?? 0) > 0,
    tunnel: tunnel?.state ?? 'none',
    pulled: pulled ? pulled.pulls.filter(({ error }) => !error).length : null,
    failedPulls: (pulled?.pulls ?? []).flatMap(({ reference, error }) => (error ? [{ reference, error }] : [])),
  };
}

function setProblems(
  kubernetesVersion: string,
  usesRegistry: boolean,
  set: ImageSet | undefined,
  missing: readonly MissingImage[],
  images: number,
) {
  if (!usesRegistry) return [];
  if (!set) return [toProblem(new AppError('image_set_missing', { detail: kubernetesVersion }))];
  // A set without a version is for whatever it is named for.
  if (set.kubernetesVersion !== null && plainVersion(set.kubernetesVersion) !== plainVersion(kubernetesVersion))
    return [
      toProblem(
        new AppError('image_set_missing', {
          detail: `${set.name} is for ${set.kubernetesVersion}, not for ${kubernetesVersion}`,
        }),
      ),
    ];
  if (missing.length === 0) return [];
  const carried = missing.filter(({ bundles }) => bundles.length > 0).length;
  const detail = `${missing.length} of ${images} images of ${set.name}; registered bundles have ${carried} of them`;
  return [
    toProblem(
      new AppError('images_missing', { detail, missing: missing.slice(0, 100).map(({ upstream }) => upstream) }),
    ),
  ];
}

function hostProblems(
  { hostId, name, configured, drifted, tunnel, failedPulls }: ReadyHost,
  registryMode: RegistryMode,
) {
  const about = { hostId };
  const problems = [];
  if (!configured) problems.push(new AppError('host_not_configured', { ...about, detail: name }));
  else if (drifted) problems.push(new AppError('host_drifted', { ...about, detail: name }));
  if (registryMode === 'local' && configured && tunnel !== 'up')
    problems.push(new AppError('tunnel_failed', { ...about, detail: `${name}: ${tunnel}` }));
  for (const { reference, error } of failedPulls.slice(0, 5))
    problems.push(
      new AppError('host_pull_failed', { ...about, detail: `${name}: ${reference}: ${error.detail ?? error.title}` }),
    );
  return problems.map(toProblem);
}
