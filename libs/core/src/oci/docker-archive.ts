import { z } from 'zod';
import { AppError } from '../errors.js';

/** One image of a docker-archive's `manifest.json`. Source: https://github.com/moby/docker-image-spec/blob/main/v1.2.md#combined-image-json--filesystem-changeset-format */
export interface DockerArchiveImage {
  /** Member name of the image configuration: `<hex>.json`, since Docker 25 `blobs/sha256/<hex>`. */
  config: string;
  /** As `docker save` was asked for them; empty when the image was saved by its ID. */
  repoTags: string[];
  /** Member names of the layers, lowest first, as many as the configuration has `diff_ids`. */
  layers: string[];
}

const archiveSchema = z
  .array(
    z.looseObject({
      Config: z.string().min(1).max(4096),
      RepoTags: z.array(z.string().max(512)).max(10_000).nullish(),
      Layers: z.array(z.string().max(4096)).max(10_000).nullish(),
    }),
  )
  .max(10_000);

/** Reads the `manifest.json` of a docker-archive. Throws `bundle_corrupt`. */
export function parseDockerArchive(bytes: Uint8Array): DockerArchiveImage[] {
  try {
    const images = archiveSchema.parse(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)));
    return images.map(({ Config, RepoTags, Layers }) => ({
      config: Config,
      repoTags: (RepoTags ?? []).filter((tag) => tag !== '<none>:<none>'),
      layers: Layers ?? [],
    }));
  } catch (cause) {
    throw new AppError('bundle_corrupt', { detail: 'manifest.json is not the list of images that docker save writes' }, { cause });
  }
}
