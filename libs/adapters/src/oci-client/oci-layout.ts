import { AppError } from '@airdock/core/errors';
import { type Digest, digestOf, isDigest } from '@airdock/core/oci/digest';
import { type Descriptor, filterIndex, isIndexMediaType, maxManifestBytes, mediaTypes, parseManifest } from '@airdock/core/oci/manifest';
import { parseReference } from '@airdock/core/oci/reference';
import pLimit from 'p-limit';
import { type BundleFiles, blobPath, missingFile, readSmall, readVerified } from './bundle-files.js';
import { checkKinds, describeImage, foreignLayer, type ImageGraph, isForeignLayer, totalSize, walkImage } from './image-graph.js';
import { annotatedName, bareName, companionKind, companionSubject, companionTag, type GivenNames, givenNames, namesMissing } from './image-names.js';
import type { Companion, ImageSource, SourceImage } from './image-source.js';

/**
 * Reads an OCI image layout, in a tar or a folder. Digests stay bit by bit what they are.
 * Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
 */

/** Both files that make a layout. */
export const isOciLayout = async (files: BundleFiles): Promise<boolean> => Boolean((await files.find('oci-layout')) && (await files.find('index.json')));

/** True when every manifest of `index.json` has a full name, there or in another entry for it. */
export async function hasNamedImages(files: BundleFiles): Promise<boolean> {
  const entries = await readIndex(files);
  const named = new Set(entries.filter((entry) => annotatedName(entry) !== undefined).map(({ digest }) => digest));
  return entries.length > 0 && entries.every(({ digest }) => named.has(digest));
}

async function readIndex(files: BundleFiles): Promise<Descriptor[]> {
  const reader = await files.find('index.json');
  if (!reader) throw missingFile(files, 'index.json');
  const index = parseManifest(await readSmall('index.json', reader, maxManifestBytes), mediaTypes.ociIndex);
  if (index.kind !== 'index') throw new AppError('bundle_corrupt', { detail: 'index.json is no image index' });
  return index.manifests;
}

async function checkVersion(files: BundleFiles): Promise<void> {
  const reader = await files.find('oci-layout');
  if (!reader) throw missingFile(files, 'oci-layout');
  const text = (await readSmall('oci-layout', reader, 4096)).toString('utf8');
  if (!/"imageLayoutVersion"\s*:\s*"1\./.test(text)) throw new AppError('bundle_format_unknown', { detail: 'the OCI layout is not of version 1' });
}

/** Manifests are read more than once in the life of a source; small ones are kept. */
const keptManifestBytes = 64 * 1024;
const keptTotalBytes = 32 * 1024 * 1024;
const readsAtOnce = 8;

interface Entry {
  root: Descriptor;
  graph: ImageGraph;
  /** Without those that only name a companion. */
  names: string[];
  /** Of an entry that belongs to another one. */
  companion?: Companion | undefined;
}

export interface OpenLayoutOptions {
  format: ImageSource['format'];
  names?: GivenNames | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Opens the images of a layout. Throws `image_name_missing`, `reference_invalid`, `bundle_corrupt`,
 * `digest_mismatch`, `digest_unsupported`, `bundle_too_large`, `image_unsupported`, `layer_encrypted`, `layer_foreign`.
 */
export async function openOciLayout(files: BundleFiles, options: OpenLayoutOptions): Promise<ImageSource> {
  await checkVersion(files);
  const layout = new Layout(files);
  const images = await layout.images(options.names ?? {}, options.signal);
  return {
    format: options.format,
    images,
    prepare: async ({ root }) => {
      if (!root) throw new TypeError('the image is of another source');
      return root;
    },
    readManifest: (digest) => layout.readManifest(digest),
    blob: async ({ digest }) => {
      const reader = isDigest(digest) ? await files.find(blobPath(digest)) : undefined;
      if (!reader) throw missingFile(files, `blob ${digest}`);
      return reader;
    },
    [Symbol.asyncDispose]: async () => {},
  };
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
    const bytes = await readVerified(this.files, blobPath(digest), digest, maxManifestBytes);
    if (bytes.byteLength <= keptManifestBytes && this.#keptBytes + bytes.byteLength <= keptTotalBytes) this.#keep(digest, bytes);
    return bytes;
  }

  #keep(digest: Digest, bytes: Buffer): void {
    this.#kept.set(digest, bytes);
    this.#keptBytes += bytes.byteLength;
  }

  async images(given: GivenNames, signal?: AbortSignal): Promise<SourceImage[]> {
    const byRoot = new Map<Digest, Entry>();
    const nameless: { entry: Entry; descriptor: Descriptor }[] = [];
    const signatures: { entry: Entry; name: string; kind: 'sig' | 'att' | 'sbom' }[] = [];
    const index = await readIndex(this.files);
    await this.#readAhead(index);
    for (const descriptor of index) {
      signal?.throwIfAborted();
      const entry = await this.#entry(descriptor, byRoot);
      const name = annotatedName(descriptor);
      const names = name === undefined ? givenNames(given, [descriptor.digest, bareName(descriptor)]) : [name];
      const kind = companionKind(descriptor);
      if (kind) signatures.push({ entry, name: name ?? '', kind });
      else if (names.length === 0) nameless.push({ entry, descriptor });
      entry.names.push(...names.filter((found) => !kind && !entry.names.includes(found)));
    }
    const entries = [...byRoot.values()];
    const owners = new Map(entries.flatMap((entry) => entry.graph.manifests.map(({ digest }) => [digest, entry] as const)));
    for (const { entry, name, kind } of signatures) attachSignature(entry, entries, name, kind);
    for (const entry of entries) attachByTag(entry, owners);
    for (const { entry } of nameless) if (!entry.companion) await this.#attachReferrer(entry, owners);
    const unnamed = nameless.filter(({ entry }) => !entry.companion && entry.names.length === 0);
    if (unnamed.length > 0)
      throw namesMissing(
        unnamed.map(({ descriptor }) => {
          const tag = bareName(descriptor);
          return { digest: descriptor.digest, detail: `${descriptor.digest} has ${tag ? `only the tag ${JSON.stringify(tag.slice(0, 128))}` : 'no name'}` };
        }),
      );
    const belonging = new Map<Entry | undefined, Entry[]>();
    for (const entry of entries) {
      const owner = entry.companion && ownerOf(entry.companion, owners);
      if (entry.companion) belonging.set(owner, [...(belonging.get(owner) ?? []), entry]);
    }
    const limit = pLimit(readsAtOnce);
    return Promise.all(entries.filter(({ companion }) => !companion).map((entry) => limit(() => this.#describe(entry, belonging.get(entry) ?? []))));
  }

  /** Reads what will be kept beside each other; what is wrong is told where it is needed. */
  async #readAhead(index: readonly Descriptor[]): Promise<void> {
    const limit = pLimit(readsAtOnce);
    const small = index.filter(({ size }) => size <= keptManifestBytes).slice(0, keptTotalBytes / keptManifestBytes);
    await Promise.all(small.map(({ digest }) => limit(() => this.readManifest(digest).catch(() => undefined))));
  }

  async #entry(descriptor: Descriptor, byRoot: Map<Digest, Entry>): Promise<Entry> {
    const { mediaType, digest, size } = await this.#presentRoot(descriptor);
    const known = byRoot.get(digest);
    if (known) return known;
    const root = { mediaType, digest, size };
    const entry = { root, graph: await walkImage(root, (child) => this.readManifest(child)), names: [] };
    byRoot.set(digest, entry);
    return entry;
  }

  /**
   * Docker and containerd export the index of a multi-platform image also when only some of its platforms are there. Such a bundle stands for those: the
   * only manifest becomes the root, or an index of those that are there. Any other hole is damage, which `walkImage` reports.
   */
  async #presentRoot(root: Descriptor): Promise<Descriptor> {
    if (!isIndexMediaType(root.mediaType) || !(await this.files.find('manifest.json'))) return root;
    const bytes = await this.readManifest(root.digest);
    const index = parseManifest(bytes, root.mediaType);
    if (index.kind !== 'index') return root;
    const present: Descriptor[] = [];
    for (const child of index.manifests) if (await this.#isComplete(child)) present.push(child);
    const [only] = present;
    if (!only || present.length === index.manifests.length) return root;
    if (present.length === 1 && !isIndexMediaType(only.mediaType)) return only;
    const filtered = filterIndex(bytes, (digest) => present.some((child) => child.digest === digest));
    const digest = digestOf(filtered);
    this.#keep(digest, filtered);
    return { mediaType: root.mediaType, digest, size: filtered.byteLength };
  }

  async #isComplete({ digest, mediaType }: Descriptor): Promise<boolean> {
    if (!(await this.files.find(blobPath(digest)))) return false;
    const document = parseManifest(await this.readManifest(digest), mediaType);
    const needed = document.kind === 'index' ? document.manifests : [document.config, ...document.layers];
    for (const part of needed) if (!(await this.files.find(blobPath(part.digest))) && !isForeignLayer(part)) return false;
    return true;
  }

  /** A nameless manifest that names what it is about. Source: https://github.com/opencontainers/image-spec/blob/main/manifest.md#guidelines-for-artifact-usage */
  async #attachReferrer(entry: Entry, owners: ReadonlyMap<Digest, Entry>): Promise<void> {
    const document = parseManifest(await this.readManifest(entry.root.digest), entry.root.mediaType);
    const subject = document.kind === 'manifest' ? document.subject?.digest : undefined;
    const owner = subject && owners.get(subject);
    if (owner && owner !== entry) entry.companion = { root: entry.root, subject };
  }

  /** Platforms and image IDs, after checking that everything that the image and its companions need is there, with the right size. */
  async #describe({ root, graph, names }: Entry, belonging: readonly Entry[]): Promise<SourceImage> {
    const [name = root.digest] = names;
    for (const { graph: needed } of [{ graph }, ...belonging]) await this.#expectBlobs(needed, name);
    const readConfig = ({ digest }: Descriptor, maxBytes: number) => readVerified(this.files, blobPath(digest), digest, maxBytes);
    const facts = await describeImage(graph, readConfig, { strict: true });
    const companions = belonging.map(({ companion }) => companion as Companion);
    const extra = new Map(belonging.flatMap((entry) => [...entry.graph.manifests, ...entry.graph.blobs]).map((part) => [part.digest, part]));
    for (const { digest } of [...graph.manifests, ...graph.blobs]) extra.delete(digest);
    return { names, root, ...facts, sizeBytes: facts.sizeBytes + totalSize(extra.values()), companions };
  }

  async #expectBlobs(graph: ImageGraph, name: string): Promise<void> {
    checkKinds(graph);
    for (const blob of graph.blobs) {
      const member = blobPath(blob.digest);
      const found = this.#sizes.get(blob.digest) ?? this.files.find(member).then((reader) => reader?.size);
      this.#sizes.set(blob.digest, found);
      const size = await found;
      if (size === undefined && isForeignLayer(blob)) throw foreignLayer(blob);
      if (size === undefined) throw missingFile(this.files, member);
      if (size !== blob.size) throw new AppError('bundle_corrupt', { detail: `${member} has ${size} bytes, ${name} says ${blob.size}`, member });
    }
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
  const owner = entries.find((other) => other !== entry && (name === '' ? other.names.length > 0 : other.names.includes(name)));
  if (owner) entry.companion = { root: entry.root, subject: owner.root.digest, tag: companionTag(owner.root.digest, kind) };
}

/** By a tag such as `sha256-<hex>.sig`, in the repository of the image. Without its image in the bundle it is an image of its own. */
function attachByTag(entry: Entry, owners: ReadonlyMap<Digest, Entry>): void {
  const references = entry.names.map(parseReference);
  const [first] = references;
  const subject = companionSubject(first?.tag);
  const owner = subject && owners.get(subject);
  if (!owner || owner === entry || owner.companion || references.length !== 1) return;
  const isSibling = owner.names.map(parseReference).some(({ registry, repository }) => registry === first?.registry && repository === first.repository);
  if (!isSibling) return;
  entry.companion = { root: entry.root, subject, tag: first?.tag };
  entry.names = [];
}
