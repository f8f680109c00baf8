import { z } from 'zod';
import { parseBoundedJson } from '../bounded-json.js';
import { AppError } from '../errors.js';
import { type Digest, isDigest } from './digest.js';
import { documentBounds, parseStrictJson } from './strict-json.js';

/** Media types of OCI and of Docker. */
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
export const manifestMediaTypes: readonly string[] = [
  mediaTypes.ociIndex,
  mediaTypes.ociManifest,
  mediaTypes.dockerList,
  mediaTypes.dockerManifest,
];

/** A manifest larger than this is refused; the registry's own limit is the same. */
export const maxManifestBytes = 4 * 1024 * 1024;

/** Where an image runs, as the image-spec writes it. */
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

/** A manifest of one image or artifact. */
export interface ImageManifest {
  kind: 'manifest';
  mediaType: string;
  config: Descriptor;
  layers: Descriptor[];
  subject?: Descriptor | undefined;
  annotations?: Record<string, string> | undefined;
}

/** A manifest of several manifests. */
export interface ImageIndex {
  kind: 'index';
  mediaType: string;
  manifests: Descriptor[];
  annotations?: Record<string, string> | undefined;
}

/** Go writes an empty list, an empty map and a pointer to nothing as null, and registries take it. */
const list = <T extends z.ZodType>(item: T) =>
  z
    .array(item)
    .max(10_000)
    .nullish()
    .transform((value) => value ?? []);
const optional = <T extends z.ZodType>(schema: T) => schema.nullish().transform((value) => value ?? undefined);

const platformSchema = z.looseObject({
  os: z
    .string()
    .nullish()
    .transform((value) => value ?? ''),
  architecture: z
    .string()
    .nullish()
    .transform((value) => value ?? ''),
  variant: optional(z.string()),
});
const otherAlgorithm = 'a digest of another algorithm than sha256';
const isOtherDigest = (value: unknown) =>
  typeof value === 'string' && /^(?!sha256:)[a-z0-9]+(?:[+._-][a-z0-9]+)*:[\w=-]+$/.test(value);

/** Go's decoder takes `Layers` for `layers`; JavaScript does not, and would not see what the registry sees. */
function exactKeys<T extends z.ZodRawShape>(schema: z.ZodObject<T, z.core.$loose>) {
  const names = new Map(Object.keys(schema.shape).map((name) => [name.toLowerCase(), name]));
  return schema.refine(
    (value) => Object.keys(value).every((key) => (names.get(key.toLowerCase()) ?? key) === key),
    'a key differs from a known one by its case',
  );
}

const descriptorSchema = exactKeys(
  z.looseObject({
    mediaType: z.string().max(255),
    digest: z.custom<Digest>(isDigest, {
      error: ({ input }) => (isOtherDigest(input) ? otherAlgorithm : 'not a sha256 digest'),
    }),
    size: z.number().int().nonnegative(),
    platform: optional(platformSchema),
    annotations: optional(z.record(z.string(), z.string())),
    urls: optional(z.array(z.string())),
  }),
);
const manifestSchema = exactKeys(
  z.looseObject({
    schemaVersion: z.literal(2),
    mediaType: optional(z.string()),
    config: descriptorSchema,
    layers: list(descriptorSchema),
    subject: optional(descriptorSchema),
    annotations: optional(z.record(z.string(), z.string())),
  }),
);
const indexSchema = exactKeys(
  z.looseObject({
    schemaVersion: z.literal(2),
    mediaType: optional(z.string()),
    manifests: list(descriptorSchema),
    annotations: optional(z.record(z.string(), z.string())),
  }),
);
const configSchema = z.looseObject({
  os: z.string().default('linux'),
  architecture: z.string().default('amd64'),
  variant: z.string().optional(),
  // Go writes an empty list as null.
  rootfs: z.looseObject({ diff_ids: z.array(z.string()).max(10_000).nullish() }).optional(),
});

/**
 * Reads the bytes of a manifest or an index. `mediaType` is what the descriptor or the response header says; without it
 * the document's own field, and without that its shape decides. Throws `digest_unsupported`, and `bundle_corrupt` for
 * anything that is neither (also Docker schema 1).
 */
export function parseManifest(bytes: Uint8Array, mediaType?: string): ImageManifest | ImageIndex {
  const corrupt = (detail: string, cause?: unknown) => new AppError('bundle_corrupt', { detail }, { cause });
  if (bytes.byteLength > maxManifestBytes)
    throw corrupt(`a manifest of ${bytes.byteLength} bytes; at most ${maxManifestBytes} are allowed`);
  let json: unknown;
  try {
    json = parseStrictJson(bytes);
  } catch (cause) {
    throw corrupt(`a manifest is not JSON that every reader understands alike: ${String(cause).slice(0, 200)}`, cause);
  }
  const isIndex = typeof json === 'object' && json !== null && 'manifests' in json;
  const parsed = (isIndex ? indexSchema : manifestSchema).safeParse(json);
  if (parsed.error?.issues.some(({ message }) => message === otherAlgorithm)) {
    throw new AppError('digest_unsupported', {
      detail: 'a manifest refers to something by another digest than sha256',
    });
  }
  // An index that is a manifest too is one of them to each reader. Source:
  // https://github.com/opencontainers/image-spec/security/advisories/GHSA-77vh-xpmg-72qh
  if (isIndex && ['layers', 'config'].some((key) => key in (json as object)))
    throw corrupt('a manifest is an index too');
  if (!parsed.success) throw corrupt(`a manifest is not valid: ${z.prettifyError(parsed.error).slice(0, 500)}`);
  const declared = parsed.data.mediaType || mediaType;
  const fallback = isIndex ? mediaTypes.ociIndex : mediaTypes.ociManifest;
  if (isIndex) {
    const { manifests, annotations } = parsed.data as z.infer<typeof indexSchema>;
    return { kind: 'index', mediaType: declared ?? fallback, manifests, annotations };
  }
  const { config, layers, subject, annotations } = parsed.data as z.infer<typeof manifestSchema>;
  return { kind: 'manifest', mediaType: declared ?? fallback, config, layers, subject, annotations };
}

/** An entry of an index that is none, as far as it says what it is. */
export interface OddEntry {
  name: string | null;
  digest: string | null;
  error: unknown;
}

/**
 * An index that nobody takes as a whole, such as a layout's `index.json`: where it is not valid, each of its entries
 * counts by itself. Throws as `parseManifest` where none of them is the reason.
 */
export function parseEntries(bytes: Uint8Array): { manifests: Descriptor[]; odd: OddEntry[] } {
  try {
    const index = parseManifest(bytes, mediaTypes.ociIndex);
    if (index.kind !== 'index') throw new AppError('bundle_corrupt', { detail: 'it is no image index' });
    return { manifests: index.manifests, odd: [] };
  } catch (whole) {
    const { manifests: entries, ...header } = readHeader(bytes, whole);
    // Throws what is wrong with the rest of it.
    parseManifest(Buffer.from(JSON.stringify({ ...header, manifests: [] })));
    if (!Array.isArray(entries) || entries.length > 10_000) throw whole;
    const manifests: Descriptor[] = [];
    const odd: OddEntry[] = [];
    for (const entry of entries as unknown[]) {
      try {
        manifests.push(
          ...(parseManifest(Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [entry] }))) as ImageIndex)
            .manifests,
        );
      } catch (error) {
        const { digest, annotations } = (entry ?? {}) as {
          digest?: unknown;
          annotations?: Record<string, unknown> | null;
        };
        const name = annotations?.['io.containerd.image.name'] ?? annotations?.['org.opencontainers.image.ref.name'];
        const said = (value: unknown) => (typeof value === 'string' && value !== '' ? value.slice(0, 512) : null);
        odd.push({ name: said(name), digest: said(digest), error });
      }
    }
    return { manifests, odd };
  }
}

/** Throws the given reason for what is no JSON object, and for what is too large. */
function readHeader(bytes: Uint8Array, reason: unknown): Record<string, unknown> {
  if (bytes.byteLength > maxManifestBytes) throw reason;
  try {
    const json = parseStrictJson(bytes);
    if (typeof json === 'object' && json !== null && !Array.isArray(json)) return json as Record<string, unknown>;
  } catch {
    // Said by the reason.
  }
  throw reason;
}

/** What a manifest or index refers to. */
export interface ManifestReferences {
  /** Of an index: the manifests below it. */
  manifests: Digest[];
  /** Every digest that stands anywhere in it, those of `manifests` too; not that of its subject. */
  mentioned: Digest[];
  subject?: Digest | undefined;
}

const digestsIn = (value: unknown): Digest[] =>
  [...new Set(JSON.stringify(value).match(/sha256:[0-9a-f]{64}/g) ?? [])] as Digest[];

/**
 * What has to stay for a manifest to be complete, read with as little understanding as possible: also kinds that
 * Airdock does not move, such as Docker's schema 1, and keys that only Go takes for the same. Rather too much than too
 * little. Throws `bundle_corrupt` for what is no JSON object.
 */
export function manifestReferences(bytes: Uint8Array): ManifestReferences {
  let document: unknown;
  try {
    document = JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch (cause) {
    throw new AppError('bundle_corrupt', { detail: 'a manifest is not JSON' }, { cause });
  }
  if (typeof document !== 'object' || document === null || Array.isArray(document))
    throw new AppError('bundle_corrupt', { detail: 'a manifest is no object' });
  const entries = Object.entries(document);
  const isKey = (wanted: string) => (entry: [string, unknown]) => entry[0].toLowerCase() === wanted;
  const children = entries
    .filter(isKey('manifests'))
    .flatMap(([, list]) => (Array.isArray(list) ? (list as unknown[]) : []));
  const ofChild = (child: unknown) =>
    typeof child === 'object' && child !== null ? Object.entries(child).filter(isKey('digest')) : [];
  return {
    manifests: digestsIn(children.flatMap(ofChild)),
    mentioned: digestsIn(entries.filter((entry) => !isKey('subject')(entry))),
    subject: digestsIn(entries.filter(isKey('subject')))[0],
  };
}

/**
 * The bytes of an index with some of its manifests only; everything else stays as it is. Another digest, so signatures
 * of the whole do not hold for it.
 */
export function filterIndex(bytes: Uint8Array, keep: (digest: Digest) => boolean): Buffer {
  const index = JSON.parse(Buffer.from(bytes).toString('utf8')) as { manifests: { digest: Digest }[] };
  return Buffer.from(JSON.stringify({ ...index, manifests: index.manifests.filter(({ digest }) => keep(digest)) }));
}

/** Whether a media type is that of an index. */
export const isIndexMediaType = (mediaType: string): boolean =>
  mediaType === mediaTypes.ociIndex || mediaType === mediaTypes.dockerList;
/** Whether a media type is that of a manifest or an index. */
export const isManifestMediaType = (mediaType: string): boolean => manifestMediaTypes.includes(mediaType);

/**
 * Platform and layer identities of an image configuration; no identities when it does not speak of layers. With
 * `strict` it must be JSON that every reader understands alike. Throws `bundle_corrupt`.
 */
export function parseImageConfig(
  bytes: Uint8Array,
  { strict = false } = {},
): { platform: Platform; diffIds: string[] | undefined } {
  try {
    const { os, architecture, variant, rootfs } = configSchema.parse(
      strict ? parseStrictJson(bytes) : parseBoundedJson(bytes, documentBounds),
    );
    return { platform: { os, architecture, variant }, diffIds: rootfs && (rootfs.diff_ids ?? []) };
  } catch (cause) {
    throw new AppError('bundle_corrupt', { detail: 'an image configuration is not valid' }, { cause });
  }
}

/** `linux/arm64/v8`, as Docker writes platforms. */
export const formatPlatform = ({ os, architecture, variant }: Platform): string =>
  [os, architecture, variant].filter(Boolean).join('/');
