import { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import { getBundle, getBundleDockerArchive, getRegistry } from '@airdock/adapters/api-clients/generated/sdk.gen';
import type { Bundle, BundleImage } from '@airdock/adapters/api-clients/generated/types.gen';
import type { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { RegistryClient } from '@airdock/adapters/oci-client/registry-client';
import { describeRegistryImage } from '@airdock/adapters/oci-client/registry-image';
import { limited, type RateLimit } from '@airdock/adapters/ssh/rate-limit';
import { pullsAtOnce, type RuntimeHost } from '@airdock/adapters/ssh/runtime-host';
import { AppError } from '@airdock/core/errors';
import { parseReference } from '@airdock/core/oci/reference';
import pLimit from 'p-limit';
import { change, type HostSteps, type Outcome } from './host-steps.js';

/** Names travel in the URL, so only so many images are asked for by name; of more the whole bundle comes, and the runtime skips the layers that it has. */
const maxNamed = 50;

export interface Warming {
  clients: ServiceClients;
  runtime: RuntimeHost | undefined;
  platform: string;
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
 * The runtime's cache has the images of a bundle. What is there under its names with its ID is not sent again. The others are pulled through the tunnel where
 * the registry has them, which moves layers compressed, and only those that the host lacks; else they are streamed into the runtime.
 */
export async function warmImages(steps: HostSteps, bundleId: string, warming: Warming): Promise<Outcome> {
  const { clients, runtime, platform, rename, limits, warnings } = warming;
  const [{ data: bundle }, there] = await Promise.all([
    getBundle({ client: clients.image, path: { id: bundleId }, throwOnError: true }),
    runtime?.imageIds(platform),
  ]);
  const wanted = bundle.images.map((image): Missing => ({ image, names: rename ? image.localReferences : image.names }));
  const missing = missingOf(wanted, there);
  const what = `${missing.length} of ${bundle.images.length} images of ${bundle.name}, ${rename ? 'local' : 'upstream'} names`;
  if (missing.length === 0) return steps.outcome([], what);

  const sources = limits.length === 0 && steps.hasTunnel ? await sourcesOf(clients, missing, platform, steps.signal) : new Map<Missing, string>();
  const streamed = missing.filter((one) => !sources.has(one));
  const how = [sources.size > 0 ? `${sources.size} pulled through the tunnel` : '', streamed.length > 0 ? `${streamed.length} streamed from the bundle` : ''];
  const detail = `${what}: ${how.filter(Boolean).join(', ')}`;
  const changes = missing.map((one) => change('image', sources.has(one) ? 'pull' : 'load', one.names[0] ?? ''));
  if (steps.dryRun || !runtime) return { status: 'planned', detail, changes };

  await steps.remember({ images: [...missing.flatMap(({ names }) => names), ...sources.values()] });
  const limit = pLimit(pullsAtOnce);
  const pulled = await Promise.all([...sources].map(([one, source]) => limit(() => pull(runtime, one, source))));
  warnings.push(...pulled.filter((problem) => problem !== undefined));
  // A pull that failed, or got what somebody has pushed meanwhile.
  const left = sources.size > 0 ? missingOf(missing, await runtime.imageIds(platform)) : missing;
  if (left.length > 0) await stream(steps, bundle, left, warming, runtime);
  return {
    status: 'done',
    detail: left.length > streamed.length ? `${detail}; ${left.length - streamed.length} of the pulls failed: streamed` : detail,
    changes,
  };
}

const missingOf = (wanted: Missing[], there: Map<string, string> = new Map()): Missing[] =>
  wanted.filter(({ image, names }) => names.some((name) => !image.imageIds.includes(there.get(name) ?? '')));

/** The local references under which the registry has just these images. */
async function sourcesOf(clients: ServiceClients, missing: Missing[], platform: string, signal: AbortSignal): Promise<Map<Missing, string>> {
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
    for (const name of names) if (name !== source) await runtime.tag(source, name);
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
  { clients, platform, rename, limits }: Warming,
  runtime: RuntimeHost,
): Promise<void> {
  const { data } = await getBundleDockerArchive({
    client: clients.image,
    path: { id: bundle.id },
    query: {
      platform,
      names: rename ? 'local' : 'upstream',
      ...(missing.length <= maxNamed ? { image: missing.flatMap(({ image }) => image.names.slice(0, 1)) } : {}),
    },
    parseAs: 'stream',
    signal,
    throwOnError: true,
  });
  const archive = Readable.fromWeb(data as unknown as ReadableStream);
  await runtime.load(limits.length === 0 ? archive : Readable.from(limited(archive, limits, signal), { objectMode: false }));
}
