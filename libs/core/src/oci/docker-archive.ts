import { z } from 'zod';
import { AppError } from '../errors.js';
import type { OddEntry } from './manifest.js';
import { parseStrictJson } from './strict-json.js';

/**
 * One image of a docker-archive's `manifest.json`. Source:
 * https://github.com/moby/docker-image-spec/blob/main/v1.2.md#combined-image-json--filesystem-changeset-format
 */
export interface DockerArchiveImage {
  /** Member name of the image configuration: `<hex>.json`, since Docker 25 `blobs/sha256/<hex>`. */
  config: string;
  /** As `docker save` was asked for them; empty when the image was saved by its ID. */
  repoTags: string[];
  /** Member names of the layers, lowest first, as many as the configuration has `diff_ids`. */
  layers: string[];
  /** By diff ID: where Docker got the layers that only their vendor may distribute. */
  layerUrls: ReadonlyMap<string, readonly string[]>;
}

const maxLayers = 100_000;

const imageSchema = z.looseObject({
  Config: z.string().min(1).max(4096),
  RepoTags: z.array(z.string().max(512)).max(10_000).nullish(),
  Layers: z.array(z.string().max(4096)).max(10_000).nullish(),
  LayerSources: z.record(z.string(), z.looseObject({ urls: z.array(z.string()).nullish() })).nullish(),
});
const archiveSchema = z.array(z.unknown()).max(10_000);

/**
 * Reads the `manifest.json` of a docker-archive; an entry that is none is told in `odd`. Throws `bundle_corrupt`,
 * `bundle_format_unknown` and `bundle_too_large` for what is wrong with all of it.
 */
export function parseDockerArchive(bytes: Uint8Array): { images: DockerArchiveImage[]; odd: OddEntry[] } {
  const entries = parseList(bytes);
  const images: z.infer<typeof imageSchema>[] = [];
  const odd: OddEntry[] = [];
  for (const entry of entries) {
    const { data, error: cause } = imageSchema.safeParse(entry);
    if (data) images.push(data);
    else
      odd.push({
        name: nameOf(entry),
        digest: null,
        error: refuse(entry, 'an entry of manifest.json is not what docker save writes', cause),
      });
  }
  if (images.reduce((sum, { Layers }) => sum + (Layers?.length ?? 0), 0) > maxLayers) {
    throw new AppError('bundle_too_large', { detail: `manifest.json lists more than ${maxLayers} layers` });
  }
  const known = images.map(({ Config, RepoTags, Layers, LayerSources }) => ({
    config: Config,
    repoTags: (RepoTags ?? []).filter((tag) => tag !== '<none>:<none>'),
    layers: Layers ?? [],
    layerUrls: new Map(Object.entries(LayerSources ?? {}).map(([diffId, { urls }]) => [diffId, urls ?? []])),
  }));
  return { images: known, odd };
}

function parseList(bytes: Uint8Array): unknown[] {
  let json: unknown;
  try {
    json = parseStrictJson(bytes);
    return archiveSchema.parse(json);
  } catch (cause) {
    throw refuse(json, 'manifest.json is not the list of images that docker save writes', cause);
  }
}

function refuse(json: unknown, detail: string, cause: unknown): AppError {
  const keys = otherKeys(json);
  if (keys)
    return new AppError(
      'bundle_format_unknown',
      { detail: `manifest.json is the list of another tool than docker save: ${keys.join(', ')}` },
      { cause },
    );
  return new AppError('bundle_corrupt', { detail }, { cause });
}

function nameOf(entry: unknown): string | null {
  const tags = (entry as { RepoTags?: unknown } | null)?.RepoTags;
  const first: unknown = Array.isArray(tags) ? tags[0] : undefined;
  return typeof first === 'string' && first !== '' ? first.slice(0, 512) : null;
}

/**
 * What is in a `manifest.json` that has nothing of Docker's: imgpkg and web applications have files of this name too.
 */
function otherKeys(json: unknown): string[] | undefined {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) return undefined;
  const keys = Object.keys(json);
  return keys.length > 0 && !keys.some((key) => /^(?:Config|RepoTags|Layers)$/i.test(key))
    ? keys.slice(0, 5).map((key) => key.slice(0, 50))
    : undefined;
}
