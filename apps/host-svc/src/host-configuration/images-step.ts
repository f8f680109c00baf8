import { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import { getBundle, getBundleDockerArchive, getRegistry } from '@airdock/clients/generated/sdk.gen';
import type { Bundle, BundleImage } from '@airdock/clients/generated/types.gen';
import type { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import { parseReference } from '@airdock/core/oci/reference';
import {
  dockerLoad,
  explainObstacles,
  type Obstacle,
  obstacleOn,
  type RunsWhere,
  runsOn,
} from '@airdock/core/oci/runs';
import { pullsAtOnce, type RuntimeHost } from '@airdock/host/runtime/runtime-host';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { describeRegistryImage } from '@airdock/registry/copy/registry-image';
import { limited, type RateLimit } from '@airdock/ssh/connection/rate-limit';
import pLimit from 'p-limit';
import { change, type HostSteps, type Outcome } from './host-steps.js';

/**
 * Names travel in the URL, so only so many images are asked for by name; of more the whole bundle comes, and the
 * runtime skips the layers that it has.
 */
const maxNamed = 50;

export interface Warming {
  clients: ServiceClients;
  runtime: RuntimeHost | undefined;
  where: RunsWhere;
  /** Images get their local references, else they keep their upstream names. */
  rename: boolean;
  /** Of image data, which is then streamed: what the host pulls by itself nobody slows down. */
  limits: readonly RateLimit[];
  warnings: string[];
}

interface Missing {
  image: BundleImage;
  /** The names that it is to have. */
  names: string[];
}

/**
 * The runtime's cache has the images of a bundle. What is there under its names with its ID is not sent again. The
 * others are pulled through the tunnel where the registry has them, which moves layers compressed, and only those that
 * the host lacks; else they are streamed into the runtime.
 */
export async function warmImages(steps: HostSteps, bundleId: string, warming: Warming): Promise<Outcome> {
  const { clients, runtime, where, rename, limits, warnings } = warming;
  const [{ data: bundle }, there] = await Promise.all([
    getBundle({ client: clients.image, path: { id: bundleId }, throwOnError: true }),
    runtime?.imageIds(where.platform),
  ]);
  const left: { name: string; obstacle: Obstacle }[] = [];
  const runnable: Missing[] = [];
  for (const image of bundle.images) {
    const obstacle = obstacleOn(image, where);
    if (obstacle) left.push({ name: image.names[0] ?? image.digest ?? '', obstacle });
    else runnable.push({ image, names: namesOf(image, rename) });
  }
  if (left.some(({ obstacle }) => obstacle === 'compression'))
    warnings.push(`${bundle.name}: left out, ${explainObstacles(left, where)}`);
  const lacking = missingOf(runnable, there);
  const sources =
    limits.length === 0 && steps.hasTunnel
      ? await sourcesOf(clients, lacking, steps.signal)
      : new Map<Missing, string>();
  const missing = lacking.filter((one) => sources.has(one) || isStreamable(one, where));
  // What only the registry can give, and does not give here.
  const pullable = lacking.filter((one) => !missing.includes(one)).map(({ image }) => image.names[0] ?? '');
  if (pullable.length > 0)
    warnings.push(
      `${bundle.name}: left out, since they can only be pulled, and ${whyNotPulled(steps, limits)}: ${pullable.slice(0, 20).join(', ')}`,
    );
  const rest = [explainObstacles(left, where), pullable.length > 0 ? `${pullable.length} that can only be pulled` : '']
    .filter(Boolean)
    .join(', ');
  const what = `${missing.length} of ${bundle.images.length} images of ${bundle.name}, ${rename ? 'local' : 'upstream'} names${rest && `; left out: ${rest}`}`;
  if (missing.length === 0) return steps.outcome([], what);

  const streamed = missing.filter((one) => !sources.has(one));
  const how = [
    sources.size > 0 ? `${sources.size} pulled through the tunnel` : '',
    streamed.length > 0 ? `${streamed.length} streamed from the bundle` : '',
  ];
  const detail = `${what}: ${how.filter(Boolean).join(', ')}`;
  const changes = missing.map((one) => change('image', sources.has(one) ? 'pull' : 'load', one.names[0] ?? ''));
  if (steps.dryRun || !runtime) return { status: 'planned', detail, changes };

  await steps.remember({ images: [...missing.flatMap(({ names }) => names), ...sources.values()] });
  const limit = pLimit(pullsAtOnce);
  const pulled = await Promise.all([...sources].map(([one, source]) => limit(() => pull(runtime, one, source))));
  warnings.push(...pulled.filter((problem) => problem !== undefined));
  // A pull that failed, or got what somebody has pushed meanwhile.
  const failed = sources.size > 0 ? missingOf(missing, await runtime.imageIds(where.platform)) : missing;
  const again = failed.filter((one) => isStreamable(one, where));
  if (again.length > 0) await stream(steps, bundle, again, warming, runtime);
  const lost = failed.filter((one) => !again.includes(one));
  const [first] = lost;
  if (first) {
    const more = lost.length > 1 ? ` and ${lost.length - 1} more` : '';
    throw new AppError('host_pull_failed', {
      detail: `${first.names[0]}${more} can only be pulled, and could not be: see the warnings`,
    });
  }
  return {
    status: 'done',
    detail:
      again.length > streamed.length
        ? `${detail}; ${again.length - streamed.length} of the pulls failed: streamed`
        : detail,
    changes,
  };
}

function whyNotPulled({ hasTunnel }: HostSteps, limits: Warming['limits']): string {
  if (!hasTunnel) return 'the host has no tunnel';
  return limits.length > 0
    ? 'bandwidth is bounded, which pulls are not'
    : 'the registry does not have them (push them first)';
}

/**
 * Of what has only a digest the local names: no runtime tags an image with a digest, and no other registry can be
 * asked.
 */
function namesOf({ names, localReferences }: BundleImage, rename: boolean): string[] {
  const tagged = (rename ? localReferences : names).filter((name) => !isDigestOnly(name));
  return tagged.length > 0 ? tagged : localReferences;
}

/** A name by digest is given by a registry only; an archive is read by programs that know no zstd. */
const isStreamable = ({ image, names }: Missing, { platform }: RunsWhere): boolean =>
  !names.some(isDigestOnly) && runsOn(image, { platform, runtime: dockerLoad });
const isDigestOnly = (name: string): boolean => name.includes('@');

const missingOf = (wanted: Missing[], there: Map<string, string> = new Map()): Missing[] =>
  wanted.filter(({ image, names }) => names.some((name) => !image.imageIds.includes(there.get(name) ?? '')));

/** The local references under which the registry has just these images. */
async function sourcesOf(
  clients: ServiceClients,
  missing: Missing[],
  signal: AbortSignal,
): Promise<Map<Missing, string>> {
  const { data } = await getRegistry({ client: clients.registry, throwOnError: true });
  const sources = new Map<Missing, string>();
  if (!data.url) return sources;
  await using registry = new RegistryClient(data.sockets?.readOnly ?? data.address ?? data.url);
  const limit = pLimit(8);
  await Promise.all(
    missing.map((one) =>
      limit(async () => {
        const [reference] = one.image.localReferences;
        const { repository, tag, digest } = parseReference(reference ?? '');
        const root = await registry.headManifest(repository, digest ?? tag ?? 'latest', { signal });
        if (!root || !reference) return;
        const found = await describeRegistryImage(registry, repository, root, [], signal).catch((error: unknown) => {
          // One that lacks something is none to pull.
          if (!(error instanceof AppError) || error.code !== 'image_not_found') throw error;
        });
        if (found?.configDigests.some((id) => one.image.imageIds.includes(id))) sources.set(one, reference);
      }),
    ),
  );
  return sources;
}

/** Returns what went wrong; the image can be brought in another way then. Throws what breaks the connection. */
async function pull(runtime: RuntimeHost, { names }: Missing, source: string): Promise<string | undefined> {
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

async function stream(
  { signal }: HostSteps,
  bundle: Bundle,
  missing: Missing[],
  { clients, where, rename, limits }: Warming,
  runtime: RuntimeHost,
): Promise<void> {
  const { data } = await getBundleDockerArchive({
    client: clients.image,
    path: { id: bundle.id },
    query: {
      platform: where.platform,
      names: rename ? 'local' : 'upstream',
      ...(missing.length <= maxNamed ? { image: missing.flatMap(({ image }) => image.names.slice(0, 1)) } : {}),
    },
    parseAs: 'stream',
    signal,
    throwOnError: true,
  });
  const archive = Readable.fromWeb(data as unknown as ReadableStream);
  await runtime.load(
    limits.length === 0 ? archive : Readable.from(limited(archive, limits, signal), { objectMode: false }),
  );
}
