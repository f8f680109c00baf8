import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import {
  dockerLoad,
  explainObstacles,
  type Obstacle,
  obstacleOn,
  type Runnable,
  type RunsWhere,
  runsOn,
} from '@airdock/core/oci/runs';
import { limited, type RateLimit } from '@airdock/ssh/connection/rate-limit';
import pLimit from 'p-limit';
import { pullsAtOnce, type RuntimeHost } from '../runtime/runtime-host.js';
import { hostChange, type StepOutcome } from '../work/host-work.js';
import type { ConfigurationWork } from './configuration-work.js';

/** An image of a bundle. */
export interface BundledImage extends Runnable {
  /** Upstream references. */
  names: readonly string[];
  localReferences: readonly string[];
  digest: string | null;
  /** Digests of the configurations, one per platform. */
  imageIds: readonly string[];
}

/** A bundle whose images a host is to have, and the ways to them. */
export interface ImageBundle {
  name: string;
  images: readonly BundledImage[];
  /** By image, the local reference under which the registry has just this image; others are left out. */
  inRegistry(images: readonly BundledImage[], signal: AbortSignal): Promise<Map<BundledImage, string>>;
  /** Images as one docker-archive, with their local or their upstream names; it may hold further images. */
  archive(
    images: readonly BundledImage[],
    options: { platform: string; names: 'local' | 'upstream'; signal: AbortSignal },
  ): Promise<Readable>;
}

/** How the cache of a runtime is warmed. */
export interface Warming {
  /** Undefined where a run that is not a dry one would install it. */
  runtime: RuntimeHost | undefined;
  where: RunsWhere;
  /** Images get their local references, else they keep their upstream names. */
  rename: boolean;
  /** Limits of image data. With any, all images are streamed, since nothing limits the pulls of a runtime. */
  limits: readonly RateLimit[];
}

interface MissingImage {
  image: BundledImage;
  /** The names that it is to have. */
  names: string[];
}

/** How the images get to the host that it does not have. */
interface WarmingPlan {
  missing: MissingImage[];
  /** Those of the missing images that are pulled, with the reference to pull. */
  pulls: Map<MissingImage, string>;
  /** What is done, for people. */
  detail: string;
}

/**
 * The runtime's cache gets the images of a bundle. An image that is there under its names with its ID is not sent
 * again. The others are pulled through the tunnel where the registry has them, which moves compressed layers, and only
 * those that the host lacks; else they are streamed into the runtime. Throws `host_pull_failed` for an image that can
 * only be pulled, and could not be.
 */
export async function warmImages(work: ConfigurationWork, bundle: ImageBundle, warming: Warming): Promise<StepOutcome> {
  const { runtime, where } = warming;
  const plan = await planWarming(work, bundle, warming, await runtime?.imageIds(where.platform));
  const { missing, pulls, detail } = plan;
  if (missing.length === 0) return work.outcome([], detail);
  const changes = missing.map((one) => hostChange('image', pulls.has(one) ? 'pull' : 'load', one.names[0] ?? ''));
  if (work.dryRun || !runtime) return { status: 'planned', detail, changes };
  await work.remember({ images: [...missing.flatMap(({ names }) => names), ...pulls.values()] });
  const failedPulls = await fetchImages(work, bundle, plan, warming, runtime);
  return {
    status: 'done',
    detail: failedPulls > 0 ? `${detail}; ${failedPulls} of the pulls failed: streamed` : detail,
    changes,
  };
}

async function planWarming(
  work: ConfigurationWork,
  bundle: ImageBundle,
  { where, rename, limits }: Warming,
  cached: Map<string, string> | undefined,
): Promise<WarmingPlan> {
  const obstacles: { name: string; obstacle: Obstacle }[] = [];
  const runnable: MissingImage[] = [];
  for (const image of bundle.images) {
    const obstacle = obstacleOn(image, where);
    if (obstacle) obstacles.push({ name: image.names[0] ?? image.digest ?? '', obstacle });
    else runnable.push({ image, names: namesOf(image, rename) });
  }
  if (obstacles.some(({ obstacle }) => obstacle === 'compression'))
    work.warn(`${bundle.name}: left out, ${explainObstacles(obstacles, where)}`);
  const lacking = missingOf(runnable, cached);
  const pulls = new Map<MissingImage, string>();
  if (limits.length === 0 && work.hasTunnel) {
    const references = await bundle.inRegistry(
      lacking.map(({ image }) => image),
      work.signal,
    );
    for (const one of lacking) {
      const reference = references.get(one.image);
      if (reference !== undefined) pulls.set(one, reference);
    }
  }
  const missing = lacking.filter((one) => pulls.has(one) || isStreamable(one, where));
  const unavailable = lacking.filter((one) => !missing.includes(one)).map(({ image }) => image.names[0] ?? '');
  if (unavailable.length > 0)
    work.warn(
      `${bundle.name}: left out, since they can only be pulled, and ${whyNotPulled(work, limits)}: ${unavailable.slice(0, 20).join(', ')}`,
    );
  const leftOut = [
    explainObstacles(obstacles, where),
    unavailable.length > 0 ? `${unavailable.length} that can only be pulled` : '',
  ].filter(Boolean);
  const streamed = missing.length - pulls.size;
  const ways = [
    pulls.size > 0 ? `${pulls.size} pulled through the tunnel` : '',
    streamed > 0 ? `${streamed} streamed from the bundle` : '',
  ].filter(Boolean);
  const what = `${missing.length} of ${bundle.images.length} images of ${bundle.name}, ${rename ? 'local' : 'upstream'} names`;
  const but = leftOut.length > 0 ? `; left out: ${leftOut.join(', ')}` : '';
  return { missing, pulls, detail: `${what}${but}${ways.length > 0 ? `: ${ways.join(', ')}` : ''}` };
}

/** Pulls, then streams the rest, and what could not be pulled. Returns how many pulls that were. */
async function fetchImages(
  work: ConfigurationWork,
  bundle: ImageBundle,
  { missing, pulls }: WarmingPlan,
  { where, rename, limits }: Warming,
  runtime: RuntimeHost,
): Promise<number> {
  const { signal } = work;
  const limit = pLimit(pullsAtOnce);
  const problems = await Promise.all([...pulls].map(([one, source]) => limit(() => pull(runtime, one, source))));
  for (const problem of problems) if (problem !== undefined) work.warn(problem);
  // A pull may have failed, or got an image that somebody has pushed meanwhile.
  const absent = pulls.size > 0 ? missingOf(missing, await runtime.imageIds(where.platform)) : missing;
  const streamed = absent.filter((one) => isStreamable(one, where));
  if (streamed.length > 0) {
    const images = streamed.map(({ image }) => image);
    const names = rename ? 'local' : 'upstream';
    const archive = await bundle.archive(images, { platform: where.platform, names, signal });
    await runtime.load(
      limits.length === 0 ? archive : Readable.from(limited(archive, limits, signal), { objectMode: false }),
    );
  }
  const lost = absent.filter((one) => !streamed.includes(one));
  const [first] = lost;
  if (first)
    throw new AppError('host_pull_failed', {
      detail: `${first.names[0]}${lost.length > 1 ? ` and ${lost.length - 1} more` : ''} can only be pulled, and could not be: see the warnings`,
    });
  return Math.max(0, streamed.length - (missing.length - pulls.size));
}

function whyNotPulled({ hasTunnel }: ConfigurationWork, limits: Warming['limits']): string {
  if (!hasTunnel) return 'the host has no tunnel';
  return limits.length > 0
    ? 'bandwidth is bounded, which pulls are not'
    : 'the registry does not have them (push them first)';
}

/**
 * The local references of an image that has upstream names by digest only: no runtime tags an image with a digest, and
 * the host reaches no other registry.
 */
function namesOf({ names, localReferences }: BundledImage, rename: boolean): string[] {
  const tagged = (rename ? localReferences : names).filter((name) => !isDigestOnly(name));
  return [...(tagged.length > 0 ? tagged : localReferences)];
}

/** Only a registry gives an image a name by digest; programs that know no zstd read an archive. */
const isStreamable = ({ image, names }: MissingImage, { platform }: RunsWhere): boolean =>
  !names.some(isDigestOnly) && runsOn(image, { platform, runtime: dockerLoad });
const isDigestOnly = (name: string): boolean => name.includes('@');

const missingOf = (wanted: MissingImage[], cached: Map<string, string> = new Map()): MissingImage[] =>
  wanted.filter(({ image, names }) => names.some((name) => !image.imageIds.includes(cached.get(name) ?? '')));

/** Returns why the image could not be pulled; it can be streamed then. Throws what breaks the connection. */
async function pull(runtime: RuntimeHost, { names }: MissingImage, source: string): Promise<string | undefined> {
  try {
    await runtime.pull(source);
    for (const name of names)
      if (name !== source) await (isDigestOnly(name) ? runtime.pull(name) : runtime.tag(source, name));
    if (!names.includes(source)) await runtime.remove(source);
    return undefined;
  } catch (error) {
    if (!(error instanceof AppError) || error.code !== 'host_pull_failed') throw error;
    return `${source} could not be pulled, and comes from the bundle: ${error.message}`;
  }
}
