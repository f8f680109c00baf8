import { z } from 'zod';
import { AppError } from '../errors.js';
import { type Digest, isDigest } from './digest.js';

export const mediaTypes = {
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  ociLayer: 'application/vnd.oci.image.layer.v1.tar',
  ociLayerGzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  ociLayerZstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
  dockerLayerGzip: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
  dockerForeignLayer: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
} as const;

/** Every kind of manifest that Airdock moves, for the `Accept` header. */
export const manifestMediaTypes: readonly string[] = [mediaTypes.ociIndex, mediaTypes.ociManifest, mediaTypes.dockerList, mediaTypes.dockerManifest];

/** A manifest larger than this is refused; the registry's own limit is the same. */
export const maxManifestBytes = 4 * 1024 * 1024;

export interface Platform {
  os: string;
  architecture: string;
  variant?: string | undefined;
}

/** Source: https://github.com/opencontainers/image-spec/blob/main/descriptor.md */
export interface Descriptor {
  mediaType: string;
  digest: Digest;
  /** Bytes. */
  size: number;
  platform?: Platform | undefined;
  annotations?: Record<string, string> | undefined;
  urls?: string[] | undefined;
}

export interface ImageManifest {
  kind: 'manifest';
  mediaType: string;
  config: Descriptor;
  layers: Descriptor[];
  subject?: Descriptor | undefined;
  annotations?: Record<string, string> | undefined;
}

export interface ImageIndex {
  kind: 'index';
  mediaType: string;
  manifests: Descriptor[];
  annotations?: Record<string, string> | undefined;
}

const platformSchema = z.looseObject({ os: z.string().default(''), architecture: z.string().default(''), variant: z.string().optional() });
const descriptorSchema = z.looseObject({
  mediaType: z.string().max(255),
  digest: z.custom<Digest>(isDigest, 'not a sha256 digest'),
  size: z.number().int().nonnegative(),
  platform: platformSchema.optional(),
  annotations: z
    .record(z.string(), z.string())
    .nullish()
    .transform((value) => value ?? undefined),
  urls: z
    .array(z.string())
    .nullish()
    .transform((value) => value ?? undefined),
});
const manifestSchema = z.looseObject({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  config: descriptorSchema,
  layers: z.array(descriptorSchema).max(10_000),
  subject: descriptorSchema.optional(),
  annotations: z
    .record(z.string(), z.string())
    .nullish()
    .transform((value) => value ?? undefined),
});
const indexSchema = z.looseObject({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  manifests: z.array(descriptorSchema).max(10_000),
  annotations: z
    .record(z.string(), z.string())
    .nullish()
    .transform((value) => value ?? undefined),
});
const configSchema = z.looseObject({
  os: z.string().default('linux'),
  architecture: z.string().default('amd64'),
  variant: z.string().optional(),
  rootfs: z.looseObject({ diff_ids: z.array(z.string()) }).optional(),
});

/**
 * Reads the bytes of a manifest or an index. `mediaType` is what the descriptor or the response header says; without it the document's own
 * field, and without that its shape decides. Throws `bundle_corrupt` for anything that is neither (also Docker schema 1).
 */
export function parseManifest(bytes: Uint8Array, mediaType?: string): ImageManifest | ImageIndex {
  const corrupt = (detail: string, cause?: unknown) => new AppError('bundle_corrupt', { detail }, { cause });
  if (bytes.byteLength > maxManifestBytes) throw corrupt(`a manifest of ${bytes.byteLength} bytes; at most ${maxManifestBytes} are allowed`);
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw corrupt('a manifest is not JSON', cause);
  }
  const isIndex = typeof json === 'object' && json !== null && 'manifests' in json;
  const parsed = (isIndex ? indexSchema : manifestSchema).safeParse(json);
  if (!parsed.success) throw corrupt(`a manifest is not valid: ${z.prettifyError(parsed.error).slice(0, 500)}`);
  const declared = parsed.data.mediaType ?? mediaType;
  const fallback = isIndex ? mediaTypes.ociIndex : mediaTypes.ociManifest;
  if (isIndex) {
    const { manifests, annotations } = parsed.data as z.infer<typeof indexSchema>;
    return { kind: 'index', mediaType: declared ?? fallback, manifests, annotations };
  }
  const { config, layers, subject, annotations } = parsed.data as z.infer<typeof manifestSchema>;
  return { kind: 'manifest', mediaType: declared ?? fallback, config, layers, subject, annotations };
}

/** The bytes of an index with some of its manifests only; everything else stays as it is. Another digest, so signatures of the whole do not hold for it. */
export function filterIndex(bytes: Uint8Array, keep: (digest: Digest) => boolean): Buffer {
  const index = JSON.parse(Buffer.from(bytes).toString('utf8')) as { manifests: { digest: Digest }[] };
  return Buffer.from(JSON.stringify({ ...index, manifests: index.manifests.filter(({ digest }) => keep(digest)) }));
}

export const isIndexMediaType = (mediaType: string): boolean => mediaType === mediaTypes.ociIndex || mediaType === mediaTypes.dockerList;
export const isManifestMediaType = (mediaType: string): boolean => manifestMediaTypes.includes(mediaType);

/** Platform and layer identities of an image configuration. Throws `bundle_corrupt`. */
export function parseImageConfig(bytes: Uint8Array): { platform: Platform; diffIds: string[] } {
  try {
    const { os, architecture, variant, rootfs } = configSchema.parse(JSON.parse(Buffer.from(bytes).toString('utf8')));
    return { platform: { os, architecture, variant }, diffIds: rootfs?.diff_ids ?? [] };
  } catch (cause) {
    throw new AppError('bundle_corrupt', { detail: 'an image configuration is not valid' }, { cause });
  }
}

/** `linux/arm64/v8`, as Docker writes platforms. */
export const formatPlatform = ({ os, architecture, variant }: Platform): string => [os, architecture, variant].filter(Boolean).join('/');
