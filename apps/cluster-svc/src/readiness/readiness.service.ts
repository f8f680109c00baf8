import type { Host, HostCheckResult, ImageSet, SetImage, Tunnel } from '@airdock/adapters/api-clients/generated/types.gen';
import { AppError, toProblem } from '@airdock/core/errors';
import { plainVersion } from '@airdock/core/kubernetes/kubeadm-config';
import { isPlatform } from '@airdock/core/oci/manifest';
import { withoutDigest } from '@airdock/core/oci/reference';
import { type RegistryMode } from '@airdock/core/registry-mode';
import { now } from '@airdock/platform/database';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { Injectable } from '@nestjs/common';
import { ClusterDefaultsService } from '../cluster-defaults/cluster-defaults.service.js';
import { ClusterFacts } from './cluster-facts.service.js';
import type { MissingImage, Readiness, ReadyHost } from './readiness.schema.js';

export interface ReadinessQuestion {
  kubernetesVersion: string;
  registryMode: RegistryMode;
  hostIds: readonly string[];
  imageSetId?: string | null | undefined;
}

/** Would a cluster stand up, with no network, now? From what is known, and from what hosts have pulled for the answer. */
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
  async look({ kubernetesVersion, registryMode, hostIds, imageSetId }: ReadinessQuestion, pulls?: Pulls): Promise<{ answer: Readiness; images: SetImage[] }> {
    const usesRegistry = registryMode !== 'none';
    const [hosts, tunnels, set] = await Promise.all([
      this.facts.hosts(hostIds),
      this.facts.tunnels(hostIds),
      usesRegistry ? this.facts.imageSetOf(kubernetesVersion, imageSetId) : undefined,
    ]);
    const images = set ? await this.facts.imagesOf(set.id) : [];
    const platforms = [...new Set(hosts.flatMap(({ facts }) => (facts ? [`linux/${facts.architecture}`] : [])))];
    const missingImages = missingFor(images, platforms);
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
    for (const { hostName, error } of pulls?.results ?? []) if (error) problems.push({ ...error, detail: `${hostName}: ${error.detail ?? error.title}` });
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

  /** References that hosts should pull to prove that they can: the smallest image that is there, or all. */
  async references({ kubernetesVersion, registryMode, imageSetId }: ReadinessQuestion, kind: Readiness['pull']): Promise<string[]> {
    const set = kind !== 'none' && registryMode !== 'none' ? await this.facts.imageSetOf(kubernetesVersion, imageSetId) : undefined;
    if (!set) return [];
    const { fields } = await this.defaults.get();
    const images = await this.facts.imagesOf(set.id);
    const present = images.filter(({ state }) => state === 'present').sort((a, b) => (a.sizeBytes ?? 0) - (b.sizeBytes ?? 0));
    return this.facts.references(kind === 'sample' ? present.slice(0, 1) : present, fields.k8sPrivateRegistry);
  }

  /** Pushes what is missing and in registered bundles, from as few bundles as possible. What no bundle has is told by the answer afterwards. */
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
export function planPushes(missing: readonly Pick<MissingImage, 'upstream' | 'bundles'>[]): { bundleId: string; images: string[] }[] {
  const plan: { bundleId: string; images: string[] }[] = [];
  let left = missing.filter(({ bundles }) => bundles.length > 0);
  while (left.length > 0) {
    const byBundle = new Map<string, string[]>();
    for (const { upstream, bundles } of left) for (const { id } of bundles) byBundle.set(id, [...(byBundle.get(id) ?? []), upstream]);
    const [best] = [...byBundle].sort(([, a], [, b]) => b.length - a.length);
    if (!best) break;
    const [bundleId, images] = best;
    plan.push({ bundleId, images });
    left = left.filter(({ upstream }) => !images.includes(upstream));
  }
  return plan;
}

/** What hosts have pulled for an answer. */
export interface Pulls {
  kind: Readiness['pull'];
  results: HostCheckResult[];
}

/** What the registry cannot serve to hosts of all these platforms. */
function missingFor(images: readonly SetImage[], wanted: readonly string[]): MissingImage[] {
  return images.flatMap(({ upstream, state, platforms, bundles }) => {
    const lacking = wanted.filter((platform) => !platforms.some((own) => isPlatform(own, platform)));
    if (state === 'present' && lacking.length === 0) return [];
    const complete = bundles.filter((bundle) => wanted.every((platform) => bundle.platforms.some((own) => isPlatform(own, platform))));
    return [
      {
        upstream,
        state: state === 'present' ? ('wrongPlatform' as const) : state,
        platforms: state === 'present' ? lacking : [...wanted],
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

function setProblems(kubernetesVersion: string, usesRegistry: boolean, set: ImageSet | undefined, missing: readonly MissingImage[], images: number) {
  if (!usesRegistry) return [];
  if (!set) return [toProblem(new AppError('image_set_missing', { detail: kubernetesVersion }))];
  // A set without a version is for whatever it is named for.
  if (set.kubernetesVersion !== null && plainVersion(set.kubernetesVersion) !== plainVersion(kubernetesVersion))
    return [toProblem(new AppError('image_set_missing', { detail: `${set.name} is for ${set.kubernetesVersion}, not for ${kubernetesVersion}` }))];
  if (missing.length === 0) return [];
  const carried = missing.filter(({ bundles }) => bundles.length > 0).length;
  const detail = `${missing.length} of ${images} images of ${set.name}; registered bundles have ${carried} of them`;
  return [toProblem(new AppError('images_missing', { detail, missing: missing.slice(0, 100).map(({ upstream }) => upstream) }))];
}

function hostProblems({ hostId, name, configured, drifted, tunnel, failedPulls }: ReadyHost, registryMode: RegistryMode) {
  const about = { hostId };
  const problems = [];
  if (!configured) problems.push(new AppError('host_not_configured', { ...about, detail: name }));
  else if (drifted) problems.push(new AppError('host_drifted', { ...about, detail: name }));
  if (registryMode === 'local' && configured && tunnel !== 'up') problems.push(new AppError('tunnel_failed', { ...about, detail: `${name}: ${tunnel}` }));
  for (const { reference, error } of failedPulls.slice(0, 5))
    problems.push(new AppError('host_pull_failed', { ...about, detail: `${name}: ${reference}: ${error.detail ?? error.title}` }));
  return problems.map(toProblem);
}
