import { z } from 'zod';
import { AppError } from '../errors.js';
import { parseStrictJson } from './strict-json.js';

/** One image of a docker-archive's `manifest.json`. Source: https://github.com/moby/docker-image-spec/blob/main/v1.2.md#combined-image-json--filesystem-changeset-format */
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

const archiveSchema = z
  .array(
    z.looseObject({
      Config: z.string().min(1).max(4096),
      RepoTags: z.array(z.string().max(512)).max(10_000).nullish(),
      Layers: z.array(z.string().max(4096)).max(10_000).nullish(),
      LayerSources: z.record(z.string(), z.looseObject({ urls: z.array(z.string()).nullish() })).nullish(),
    }),
  )
  .max(10_000);

/** Reads the `manifest.json` of a docker-archive. Throws `bundle_corrupt` and `bundle_too_large`. */
export function parseDockerArchive(bytes: Uint8Array): DockerArchiveImage[] {
  const images = parseImages(bytes);
  if (images.reduce((sum, { Layers }) => sum + (Layers?.length ?? 0), 0) > maxLayers) {
    throw new AppError('bundle_too_large', { detail: `manifest.json lists more than ${maxLayers} layers` });
  }
  return images.map(({ Config, RepoTags, Layers, LayerSources }) => ({
    config: Config,
    repoTags: (RepoTags ?? []).filter((tag) => tag !== '<none>:<none>'),
    layers: Layers ?? [],
    layerUrls: new Map(Object.entries(LayerSources ?? {}).map(([diffId, { urls }]) => [diffId, urls ?? []])),
  }));
}

function parseImages(bytes: Uint8Array): z.infer<typeof archiveSchema> {
  let json: unknown;
  try {
    json = parseStrictJson(bytes);
    return archiveSchema.parse(json);
  } catch (cause) {
    const keys = otherKeys(json);
    if (keys)
      throw new AppError('bundle_format_unknown', { detail: `manifest.json is the list of another tool than docker save: ${keys.join(', ')}` }, { cause });
    throw new AppError('bundle_corrupt', { detail: 'manifest.json is not the list of images that docker save writes' }, { cause });
  }
}

/** What is in a `manifest.json` that has nothing of Docker's: imgpkg and web applications have files of this name too. */
function otherKeys(json: unknown): string[] | undefined {
  const [first] = Array.isArray(json) ? (json as unknown[]) : [json];
  if (typeof first !== 'object' || first === null || Array.isArray(first)) return undefined;
  const keys = Object.keys(first);
  return keys.length > 0 && !keys.some((key) => /^(?:Config|RepoTags|Layers)$/i.test(key)) ? keys.slice(0, 5).map((key) => key.slice(0, 50)) : undefined;
}
