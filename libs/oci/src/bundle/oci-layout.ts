import { AppError } from '@airdock/core/errors';
import { type Digest, digestOf, isDigest } from '@airdock/core/oci/digest';
import {
  type Descriptor,
  filterIndex,
  formatPlatform,
  isIndexMediaType,
  isManifestMediaType,
  maxManifestBytes,
  parseEntries,
  parseManifest,
} from '@airdock/core/oci/manifest';
import { parseReference, withoutDigest } from '@airdock/core/oci/reference';
import pLimit from 'p-limit';
import {
  checkKinds,
  describeImage,
  foreignLayer,
  type ImageGraph,
  isForeignLayer,
  totalSize,
  walkImage,
} from '../image/image-graph.js';
import {
  annotatedName,
  bareName,
  companionKind,
  companionSubject,
  companionTag,
  type GivenNames,
  givenNames,
} from '../image/image-names.js';
import {
  type Companion,
  type ImageSource,
  type SourceImage,
  type UnusableImage,
  unusableImage,
} from '../image/image-source.js';
import { type BundleFiles, layoutBlobPath, missingFile, readSmall, readVerified } from './bundle-files.js';

/**
 * Reads an OCI image layout, in a tar or a folder. Digests stay bit by bit what they are.
 * Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
 */

/** Both files that make a layout. */
export const isOciLayout = async (files: BundleFiles): Promise<boolean> =>
  Boolean((await files.find('oci-layout')) && (await files.find('index.json')));

async function readIndex(files: BundleFiles) {
  const reader = await files.find('index.json');
  if (!reader) throw missingFile(files, 'index.json');
  return parseEntries(await readSmall('index.json', reader, maxManifestBytes));
}

async function checkVersion(files: BundleFiles): Promise<void> {
  const reader = await files.find('oci-layout');
  if (!reader) throw missingFile(files, 'oci-layout');
  const text = (await readSmall('oci-layout', reader, 4096)).toString('utf8');
  if (!/"imageLayoutVersion"\s*:\s*"1\./.test(text))
    throw new AppError('bundle_format_unknown', { detail: 'the OCI layout is not of version 1' });
}

/** Manifests are read more than once in the life of a source; small ones are kept. */
const keptManifestBytes = 64 * 1024;
const keptTotalBytes = 32 * 1024 * 1024;
const readsAtOnce = 8;
/** Of the blobs that no manifest mentions, so many are looked at. */
const maxUnlisted = 100_000;

interface Entry {
  root: Descriptor;
  graph: ImageGraph;
  /** Without those that only name a companion. */
  names: string[];
  /** Platforms that its index lists and the bundle does not have. */
  absent: string[];
  /** Of an entry that belongs to another one. */
  companion?: Companion | undefined;
}

/** How an OCI layout is opened, alone or beside another list. */
export interface OpenLayoutOptions {
  format: ImageSource['format'];
  names?: GivenNames | undefined;
  /** For what has no name here: names by digest of the configuration, from another list of the bundle. */
  namesByConfig?: ReadonlyMap<Digest, readonly string[]> | undefined;
  signal?: AbortSignal | undefined;
}

/** An OCI layout that is open, as an image source. */
export interface LayoutSource extends ImageSource {
  /** Configurations of images that have no name. */
  namelessConfigs: ReadonlySet<Digest>;
}

/**
 * Opens the images of a layout; those that are not whole, or that no registry takes, are in `unusable`. Throws what is
 * wrong with the layout itself: `bundle_corrupt`, `bundle_truncated`, `bundle_unsafe`, `bundle_format_unknown`,
 * `bundle_too_large`.
 */
export async function openOciLayout(files: BundleFiles, options: OpenLayoutOptions): Promise<LayoutSource> {
  await checkVersion(files);
  const layout = new Layout(files);
  const found = await layout.images(options.names ?? {}, options.namesByConfig ?? new Map(), options.signal);
  return {
    format: options.format,
    ...found,
    prepare: async ({ root }) => {
      if (!root) throw new TypeError('the image is of another source');
      return root;
    },
    readManifest: (digest) => layout.readManifest(digest),
    blob: async ({ digest }) => {
      const reader = isDigest(digest) ? await files.find(layoutBlobPath(digest)) : undefined;
      if (!reader) throw missingFile(files, `blob ${digest}`);
      return reader;
    },
    [Symbol.asyncDispose]: async () => {},
  };
}

/** What an index lists. */
interface Listed {
  byRoot: Map<Digest, Entry>;
  unusable: UnusableImage[];
  nameless: { entry: Entry; descriptor: Descriptor }[];
  signatures: { entry: Entry; name: string; kind: 'sig' | 'att' | 'sbom' }[];
}

class Layout {
  readonly #kept = new Map<Digest, Buffer>();
  /** Sizes of blobs that were looked up: many images share their layers. */
  readonly #sizes = new Map<Digest, Promise<number | undefined>>();
  #keptBytes = 0;

  constructor(private readonly files: BundleFiles) {}

  async readManifest(digest: Digest): Promise<Buffer> {
    const kept = this.#kept.get(digest);
    if (kept) return kept;
    const bytes = await readVerified(this.files, layoutBlobPath(digest), digest, maxManifestBytes);
    if (bytes.byteLength <= keptManifestBytes && this.#keptBytes + bytes.byteLength <= keptTotalBytes)
      this.#keep(digest, bytes);
    return bytes;
  }

  #keep(digest: Digest, bytes: Buffer): void {
    this.#kept.set(digest, bytes);
    this.#keptBytes += bytes.byteLength;
  }

  async images(given: GivenNames, namesByConfig: ReadonlyMap<Digest, readonly string[]>, signal?: AbortSignal) {
    const { byRoot, unusable, nameless, signatures } = await this.#readListed(given, signal);
    const namelessConfigs = new Set<Digest>();
    for (const entry of byRoot.values()) unusable.push(...settleNames(entry));
    unusable.push(...dropSharedNames([...byRoot.values()]));
    unusable.push(...(await this.#addUnlisted(byRoot, signal)));
    const entries = [...byRoot.values()];
    const owners = new Map(
      entries.flatMap((entry) => entry.graph.manifests.map(({ digest }) => [digest, entry] as const)),
    );
    for (const { entry, name, kind } of signatures) attachSignature(entry, entries, name, kind);
    for (const entry of entries) attachByTag(entry, owners);
    for (const { entry, descriptor } of nameless) {
      if (!entry.companion) await this.#attachReferrer(entry, owners);
      if (!entry.companion) attachByBareTag(entry, bareName(descriptor), owners);
    }
    for (const { entry, descriptor } of nameless) {
      if (entry.companion || entry.names.length > 0 || unusable.some(({ digest }) => digest === entry.root.digest))
        continue;
      entry.names.push(
        ...new Set(entry.graph.images.flatMap(({ manifest }) => namesByConfig.get(manifest.config.digest) ?? [])),
      );
      if (entry.names.length > 0) continue;
      for (const { manifest } of entry.graph.images) namelessConfigs.add(manifest.config.digest);
      const tag = bareName(descriptor);
      unusable.push({
        name: tag?.slice(0, 512) ?? null,
        digest: descriptor.digest,
        code: 'image_name_missing',
        detail: tag
          ? `${descriptor.digest} has only the tag ${JSON.stringify(tag.slice(0, 128))}`
          : `${descriptor.digest} has no name`,
      });
    }
    const belonging = new Map<Entry | undefined, Entry[]>();
    for (const entry of entries) {
      const owner = entry.companion && ownerOf(entry.companion, owners);
      if (entry.companion) belonging.set(owner, [...(belonging.get(owner) ?? []), entry]);
    }
    const limit = pLimit(readsAtOnce);
    const named = entries.filter(({ companion, names }) => !companion && names.length > 0);
    const images = await Promise.all(
      named.map((entry) => limit(() => this.#describe(entry, belonging.get(entry) ?? [], unusable))),
    );
    return { images: images.filter((image) => image !== undefined), unusable, namelessConfigs };
  }

  /** What the index lists, each image once, and what of it cannot be used. */
  async #readListed(given: GivenNames, signal: AbortSignal | undefined): Promise<Listed> {
    const listed: Listed = { byRoot: new Map(), unusable: [], nameless: [], signatures: [] };
    const { manifests: index, odd } = await readIndex(this.files);
    for (const { error, ...entry } of odd) listed.unusable.push(unusableImage(error, entry));
    await this.#readAhead(index);
    for (const descriptor of index) {
      signal?.throwIfAborted();
      try {
        await this.#readOne(descriptor, given, listed);
      } catch (error) {
        const name = descriptor.annotations?.['io.containerd.image.name'] ?? bareName(descriptor) ?? null;
        listed.unusable.push(unusableImage(error, { name, digest: descriptor.digest }));
      }
    }
    return listed;
  }

  async #readOne(descriptor: Descriptor, given: GivenNames, { byRoot, nameless, signatures }: Listed): Promise<void> {
    const entry = await this.#entry(descriptor, byRoot);
    const chosen = givenNames(given, [descriptor.digest, entry.root.digest]);
    const name = chosen.length > 0 ? undefined : annotatedName(descriptor);
    const names = chosen.length > 0 ? chosen : name === undefined ? givenNames(given, [bareName(descriptor)]) : [name];
    const kind = companionKind(descriptor);
    if (kind) signatures.push({ entry, name: name ?? '', kind });
    else if (names.length === 0) nameless.push({ entry, descriptor });
    else entry.names.push(...names);
  }

  /** Reads what will be kept beside each other; what is wrong is told where it is needed. */
  async #readAhead(index: readonly Descriptor[]): Promise<void> {
    const limit = pLimit(readsAtOnce);
    const small = index.filter(({ size }) => size <= keptManifestBytes).slice(0, keptTotalBytes / keptManifestBytes);
    await Promise.all(small.map(({ digest }) => limit(() => this.readManifest(digest).catch(() => undefined))));
  }

  async #entry(descriptor: Descriptor, byRoot: Map<Digest, Entry>): Promise<Entry> {
    const { root, absent } = await this.#presentRoot(descriptor);
    const known = byRoot.get(root.digest);
    if (known) return known;
    const { mediaType, digest, size } = root;
    const entry: Entry = {
      root: { mediaType, digest, size },
      graph: await walkImage({ mediaType, digest, size }, (child) => this.readManifest(child)),
      names: [],
      absent,
    };
    byRoot.set(digest, entry);
    return entry;
  }

  /**
   * Tools export the index of a multi-platform image also when only some of its platforms are there. Such a bundle
   * stands for those: the only manifest becomes the root, or an index of those that are there. An index without any is
   * damage, which `walkImage` reports. Source: https://github.com/opencontainers/image-spec/pull/1025
   */
  async #presentRoot(root: Descriptor): Promise<{ root: Descriptor; absent: string[] }> {
    const whole = { root, absent: [] };
    if (!isIndexMediaType(root.mediaType)) return whole;
    const bytes = await this.readManifest(root.digest);
    const index = parseManifest(bytes, root.mediaType);
    if (index.kind !== 'index') return whole;
    const present: Descriptor[] = [];
    for (const child of index.manifests) if (await this.#isComplete(child)) present.push(child);
    const [only] = present;
    // Of a file that was cut what is missing is not absent.
    if (!only || present.length === index.manifests.length || !this.files.complete) return whole;
    const isPresent = new Set(present.map(({ digest }) => digest));
    const absent = index.manifests
      .filter(({ digest }) => !isPresent.has(digest))
      .map(({ platform, digest }) => (platform && formatPlatform(platform)) || digest);
    if (present.length === 1 && !isIndexMediaType(only.mediaType)) return { root: only, absent };
    const filtered = filterIndex(bytes, (digest) => isPresent.has(digest));
    const digest = digestOf(filtered);
    this.#keep(digest, filtered);
    return { root: { mediaType: root.mediaType, digest, size: filtered.byteLength }, absent };
  }

  async #isComplete({ digest, mediaType }: Descriptor): Promise<boolean> {
    if (!(await this.files.find(layoutBlobPath(digest)))) return false;
    if (!isManifestMediaType(mediaType)) return true;
    const document = parseManifest(await this.readManifest(digest), mediaType);
    if (document.kind === 'index') {
      for (const child of document.manifests) if (!(await this.#isComplete(child))) return false;
      return true;
    }
    for (const part of [document.config, ...document.layers])
      if (!(await this.files.find(layoutBlobPath(part.digest))) && !isForeignLayer(part)) return false;
    return true;
  }

  /**
   * Referrers that are among the blobs and not in `index.json`: cosign 3 and others write them so, and count on the
   * registry's list of them. Returns those that are none. Source: https://github.com/sigstore/cosign/issues/4695
   */
  async #addUnlisted(byRoot: Map<Digest, Entry>, signal?: AbortSignal): Promise<UnusableImage[]> {
    const odd = new Map<Digest, UnusableImage>();
    const known = new Set<string>();
    for (const { graph } of byRoot.values())
      for (const { digest } of [...graph.manifests, ...graph.blobs]) known.add(digest);
    const bySubject = new Map<Digest, Descriptor[]>();
    for (const name of (await this.files.names('blobs/sha256')).slice(0, maxUnlisted)) {
      const digest = `sha256:${name}`;
      if (!isDigest(digest) || known.has(digest)) continue;
      signal?.throwIfAborted();
      const { size = 0 } = (await this.files.find(layoutBlobPath(digest))) ?? {};
      if (size === 0 || size > keptManifestBytes) continue;
      const bytes = await this.readManifest(digest).catch(() => undefined);
      const document = bytes?.includes('"subject"') ? parseOrNothing(bytes) : undefined;
      const subject =
        document?.kind === 'manifest' && isManifestMediaType(document.mediaType) ? document.subject?.digest : undefined;
      if (!document || !subject) continue;
      const referrers = bySubject.get(subject) ?? [];
      referrers.push({ mediaType: document.mediaType, digest, size });
      bySubject.set(subject, referrers);
    }
    // Grows while it is gone through: a referrer may speak of another one.
    const subjects = [...byRoot.values()].flatMap(({ graph }) => graph.manifests.map(({ digest }) => digest));
    for (const subject of subjects) {
      for (const root of bySubject.get(subject) ?? []) {
        if (byRoot.has(root.digest)) continue;
        try {
          const graph = await walkImage(root, (child) => this.readManifest(child));
          byRoot.set(root.digest, { root, graph, names: [], absent: [], companion: { root, subject } });
          subjects.push(root.digest);
        } catch (error) {
          odd.set(root.digest, leftBehind(error, { name: null, digest: root.digest }));
        }
      }
    }
    return [...odd.values()];
  }

  /**
   * A nameless manifest that names what it is about. Source:
   * https://github.com/opencontainers/image-spec/blob/main/manifest.md#guidelines-for-artifact-usage
   */
  async #attachReferrer(entry: Entry, owners: ReadonlyMap<Digest, Entry>): Promise<void> {
    const document = parseManifest(await this.readManifest(entry.root.digest), entry.root.mediaType);
    const subject = document.kind === 'manifest' ? document.subject?.digest : undefined;
    const owner = subject && owners.get(subject);
    if (owner && owner !== entry) entry.companion = { root: entry.root, subject };
  }

  /**
   * Platforms and image IDs, after checking that everything that the image and its companions need is there, with the
   * right size. Undefined when it is not.
   */
  async #describe(
    entry: Entry,
    belonging: readonly Entry[],
    unusable: UnusableImage[],
  ): Promise<SourceImage | undefined> {
    const { root, graph, names, absent } = entry;
    const [name = root.digest] = names;
    try {
      await this.#expectBlobs(graph, name);
      const readConfig = ({ digest }: Descriptor, maxBytes: number) =>
        readVerified(this.files, layoutBlobPath(digest), digest, maxBytes);
      const facts = await describeImage(graph, readConfig, { strict: true });
      const whole: Entry[] = [];
      for (const one of belonging) {
        try {
          await this.#expectBlobs(one.graph, name);
          whole.push(one);
        } catch (error) {
          unusable.push(leftBehind(error, { name, digest: one.root.digest }));
        }
      }
      if (absent.length > 0)
        unusable.push({
          name,
          digest: root.digest,
          code: 'platforms_absent',
          detail: `not in the bundle: ${absent.slice(0, 20).join(', ')}; what is there is taken, with a digest of its own`,
        });
      const companions = whole.map(({ companion }) => companion as Companion);
      const extra = new Map(
        whole.flatMap((one) => [...one.graph.manifests, ...one.graph.blobs]).map((part) => [part.digest, part]),
      );
      for (const { digest } of [...graph.manifests, ...graph.blobs]) extra.delete(digest);
      return { names, root, ...facts, sizeBytes: facts.sizeBytes + totalSize(extra.values()), companions };
    } catch (error) {
      for (const one of names) unusable.push(unusableImage(error, { name: one, digest: root.digest }));
      return undefined;
    }
  }

  async #expectBlobs(graph: ImageGraph, name: string): Promise<void> {
    checkKinds(graph);
    for (const blob of graph.blobs) {
      const member = layoutBlobPath(blob.digest);
      const found = this.#sizes.get(blob.digest) ?? this.files.find(member).then((reader) => reader?.size);
      this.#sizes.set(blob.digest, found);
      const size = await found;
      if (size === undefined && isForeignLayer(blob)) throw foreignLayer(blob);
      if (size === undefined) throw missingFile(this.files, member);
      if (size !== blob.size)
        throw new AppError('bundle_corrupt', {
          detail: `${member} has ${size} bytes, ${name} says ${blob.size}`,
          member,
        });
    }
  }
}

/**
 * A digest in a name says what the name led to where the bundle was made. Of an index of which only a part is here that
 * is something else than the content: then the tag is the name, and a name without one leads nowhere.
 */
function settleNames(entry: Entry): UnusableImage[] {
  const { digest: own } = entry.root;
  const names = new Set<string>();
  const others: { name: string; tag?: string | undefined; digest: Digest }[] = [];
  for (const name of entry.names) {
    const { tag, digest } = parseReference(name);
    if (tag || digest === own) names.add(withoutDigest(name));
    if (digest && digest !== own) others.push({ name, tag, digest });
  }
  entry.names = [...names];
  // Another name and what is absent say all that there is to say.
  const told = others.filter(({ tag }) => names.size === 0 || (tag && entry.absent.length === 0));
  const taken = (tag?: string) => (tag ? 'which is taken under its tag' : 'which needs a name: give one with `names`');
  return told.map(({ name, tag, digest }) => ({
    name,
    digest: own,
    code: 'digest_mismatch',
    detail: `its name demands ${digest}, the bundle has ${own}, ${taken(tag)}`,
  }));
}

/** A name that leads to two images is the name of none: which one counts differs between readers. */
function dropSharedNames(entries: readonly Entry[]): UnusableImage[] {
  const byName = new Map<string, Entry[]>();
  for (const entry of entries) for (const name of entry.names) byName.set(name, [...(byName.get(name) ?? []), entry]);
  return [...byName].flatMap(([name, sharing]) =>
    (sharing.length > 1 ? sharing : []).map((entry): UnusableImage => {
      entry.names = entry.names.filter((one) => one !== name);
      return {
        name,
        digest: entry.root.digest,
        code: 'image_name_ambiguous',
        detail: `index.json gives ${name} to ${sharing.length} images`,
      };
    }),
  );
}

/** Of what belongs to an image. */
function leftBehind(error: unknown, { name, digest }: Pick<UnusableImage, 'name' | 'digest'>): UnusableImage {
  const { code, detail } = unusableImage(error, { name, digest });
  return { name, digest, code, detail: `the image is pushed without this signature, attestation or SBOM: ${detail}` };
}

function parseOrNothing(bytes: Buffer): ReturnType<typeof parseManifest> | undefined {
  try {
    return parseManifest(bytes);
  } catch {
    // A blob of something else.
    return undefined;
  }
}

/** A companion may speak of another companion, e.g. the signature of an SBOM. */
function ownerOf(companion: Companion, owners: ReadonlyMap<Digest, Entry>): Entry | undefined {
  let owner = owners.get(companion.subject);
  for (let hops = 0; owner?.companion && hops < 10; hops++) owner = owners.get(owner.companion.subject);
  return owner;
}

/** By the name that a signature shares with its image; cosign's own layouts hold one image, and no names at all. */
function attachSignature(entry: Entry, entries: readonly Entry[], name: string, kind: 'sig' | 'att' | 'sbom'): void {
  const owner = entries.find(
    (other) => other !== entry && (name === '' ? other.names.length > 0 : other.names.includes(name)),
  );
  if (owner)
    entry.companion = { root: entry.root, subject: owner.root.digest, tag: companionTag(owner.root.digest, kind) };
}

/** By a tag such as `sha256-<hex>.sig` that stands alone, as tools write it that give images bare tags. */
function attachByBareTag(entry: Entry, tag: string | undefined, owners: ReadonlyMap<Digest, Entry>): void {
  const subject = companionSubject(tag);
  const owner = subject && owners.get(subject);
  if (owner && owner !== entry && !owner.companion && entry.names.length === 0)
    entry.companion = { root: entry.root, subject, tag };
}

/**
 * By a tag such as `sha256-<hex>.sig`, in the repository of the image. Without its image in the bundle it is an image
 * of its own.
 */
function attachByTag(entry: Entry, owners: ReadonlyMap<Digest, Entry>): void {
  const references = entry.names.map(parseReference);
  const [first] = references;
  const subject = companionSubject(first?.tag);
  const owner = subject && owners.get(subject);
  if (!owner || owner === entry || owner.companion || references.length !== 1) return;
  const isSibling = owner.names
    .map(parseReference)
    .some(({ registry, repository }) => registry === first?.registry && repository === first.repository);
  if (!isSibling) return;
  entry.companion = { root: entry.root, subject, tag: first?.tag };
  entry.names = [];
}
