/**
 * A client for registries that speak the OCI distribution API, as far as images are moved and listed. It does not retry, and knows no
 * references, only names inside one registry: `copyImages` and `backupRegistry` do the rest.
 * Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
 */

import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { createDigest, type Digest, digestOf, isDigest } from '@airdock/core/oci/digest';
import { type Descriptor, manifestMediaTypes, maxManifestBytes, parseManifest } from '@airdock/core/oci/manifest';
import type { BlobReader } from './image-source.js';
import { RegistryHttp, type RegistryHttpOptions, type RegistryResponse } from './registry-http.js';

export interface CallOptions {
  signal?: AbortSignal | undefined;
}

export interface UploadOptions extends CallOptions {
  /** Called with the number of bytes that were just handed to the connection. */
  onBytes?: ((count: number) => void) | undefined;
}

export interface FetchedManifest {
  bytes: Buffer;
  mediaType: string;
  digest: Digest;
}

const acceptManifests = { accept: manifestMediaTypes.join(', ') };
const foundOrNot = (status: number): boolean => (status >= 200 && status < 300) || status === 404;
const pageSize = 1000;
const maxPages = 10_000;
const maxPageBytes = 16 * 1024 * 1024;
/** Cleaning up an upload is a courtesy; the registry purges what is left. It must not hold up a cancel. */
const cancelTimeoutMs = 500;

/**
 * All methods throw `registry_unavailable` when trying again may help, `registry_rejected` with the registry's own `registryCode`, and the
 * signal's reason. Many calls may run at a time. The owner calls `close`.
 */
export class RegistryClient implements AsyncDisposable {
  readonly #http: RegistryHttp;

  /** @param baseUrl such as `http://127.0.0.1:5100` */
  constructor(
    readonly baseUrl: string,
    options: RegistryHttpOptions = {},
  ) {
    this.#http = new RegistryHttp(baseUrl, options);
  }

  /** Resolves when the registry answers its API's root. */
  async ping(options: CallOptions = {}): Promise<void> {
    await (await this.#http.send({ method: 'GET', path: '/v2/', ...options })).discard();
  }

  /** Size in bytes, or undefined when this repository has no such blob. */
  async headBlob(repository: string, digest: Digest, options: CallOptions = {}): Promise<{ size: number } | undefined> {
    const response = await this.#http.send({ method: 'HEAD', path: `/v2/${repository}/blobs/${digest}`, ...options }, foundOrNot);
    await response.discard();
    return response.status === 404 ? undefined : { size: Number(response.header('content-length') ?? Number.NaN) };
  }

  /**
   * The bytes of a blob from `start` (default 0). Not verified: the caller hashes, and destroys the stream. Throws `image_not_found`.
   * Redirects to the registry's storage are followed, without the credential.
   */
  async getBlob(repository: string, digest: Digest, { start = 0, signal }: CallOptions & { start?: number } = {}): Promise<Readable> {
    const headers: Record<string, string> = start > 0 ? { range: `bytes=${start}-` } : {};
    const isAnswer = (status: number) => foundOrNot(status) || [301, 302, 303, 307, 308].includes(status);
    let path = `/v2/${repository}/blobs/${digest}`;
    for (let redirects = 0; redirects < 5; redirects++) {
      const response = await this.#http.send({ method: 'GET', path, headers, signal }, isAnswer);
      if (response.status < 300) {
        if (start > 0 && response.status !== 206) {
          await response.discard();
          throw new AppError('registry_rejected', { detail: 'the registry does not serve parts of blobs' });
        }
        return Readable.from(response.body, { objectMode: false });
      }
      await response.discard();
      if (response.status === 404) throw new AppError('image_not_found', { detail: `${repository} has no blob ${digest}`, digest });
      path = response.header('location') ?? path;
    }
    throw new AppError('registry_rejected', { detail: 'too many redirects' });
  }

  /** Makes a blob of another repository known in this one, without copying. False when the registry does not do it; then upload. */
  async mountBlob(repository: string, digest: Digest, from: string, options: CallOptions = {}): Promise<boolean> {
    const path = `/v2/${repository}/blobs/uploads/?mount=${encodeURIComponent(digest)}&from=${encodeURIComponent(from)}`;
    const response = await this.#http.send({ method: 'POST', path, headers: { 'content-length': '0' }, ...options });
    await response.discard();
    if (response.status === 201) return true;
    const session = response.header('location');
    if (session) await this.#cancelUpload(session);
    return false;
  }

  /**
   * Uploads a blob in one request. It is hashed on the way and its end is held back until the digest is right, so the registry never gets to see
   * the end of wrong bytes: `digest_mismatch`. Does not look whether the blob is there. A failed upload is cancelled in the registry.
   */
  async uploadBlob(repository: string, descriptor: Descriptor, reader: BlobReader, { signal, onBytes }: UploadOptions = {}): Promise<void> {
    if (reader.size !== descriptor.size) throw mismatch(descriptor, `the source has ${reader.size} bytes instead of ${descriptor.size}`);
    const started = await this.#http.send({ method: 'POST', path: `/v2/${repository}/blobs/uploads/`, headers: { 'content-length': '0' }, signal });
    await started.discard();
    const location = started.header('location');
    if (!location) throw new AppError('registry_rejected', { detail: 'the registry gave no upload location' });
    const target = new URL(location, this.baseUrl);
    target.searchParams.set('digest', descriptor.digest);
    const content = reader.open();
    try {
      const finished = await this.#http.send({
        method: 'PUT',
        path: target.href,
        headers: { 'content-type': 'application/octet-stream', 'content-length': String(descriptor.size) },
        body: descriptor.size === 0 ? Buffer.alloc(0) : verifiedChunks(content, descriptor, onBytes),
        signal,
      });
      await finished.discard();
    } catch (error) {
      await this.#cancelUpload(location);
      throw error;
    } finally {
      content.destroy();
    }
  }

  /**
   * Removes an unfinished upload, as far as the registry can: distribution 2 refuses for one that broke off in the middle, because its state
   * no longer matches the location, and removes it with its own purge of old uploads.
   */
  async #cancelUpload(location: string): Promise<void> {
    const cancelled = this.#http.send({ method: 'DELETE', path: location, timeoutMs: cancelTimeoutMs }, () => true);
    await cancelled.then(
      (response) => response.discard(),
      () => undefined,
    );
  }

  /** What a tag or digest points at, or undefined. */
  async headManifest(repository: string, reference: string, options: CallOptions = {}): Promise<Descriptor | undefined> {
    const response = await this.#http.send(
      { method: 'HEAD', path: `/v2/${repository}/manifests/${reference}`, headers: acceptManifests, ...options },
      foundOrNot,
    );
    await response.discard();
    if (response.status === 404) return undefined;
    const digest = isDigest(reference) ? reference : response.header('docker-content-digest');
    const size = Number(response.header('content-length') ?? Number.NaN);
    const mediaType = response.header('content-type');
    if (isDigest(digest) && Number.isInteger(size) && mediaType) return { mediaType, digest, size };
    // Some proxies remove these headers.
    const manifest = await this.getManifest(repository, reference, options);
    return manifest && { mediaType: manifest.mediaType, digest: manifest.digest, size: manifest.bytes.byteLength };
  }

  /** A manifest or index, verified against the digest asked for or announced, or undefined. Throws `digest_mismatch`. */
  async getManifest(repository: string, reference: string, options: CallOptions = {}): Promise<FetchedManifest | undefined> {
    const response = await this.#http.send(
      { method: 'GET', path: `/v2/${repository}/manifests/${reference}`, headers: acceptManifests, ...options },
      foundOrNot,
    );
    if (response.status === 404) {
      await response.discard();
      return undefined;
    }
    const bytes = await response.read(maxManifestBytes);
    const digest = digestOf(bytes);
    const expected = isDigest(reference) ? reference : (response.header('docker-content-digest') ?? digest);
    if (digest !== expected)
      throw new AppError('digest_mismatch', { detail: `the registry answered ${repository}@${expected} with ${digest}`, expected, actual: digest });
    const mediaType = response.header('content-type')?.split(';')[0]?.trim();
    return { bytes, digest, mediaType: mediaType && manifestMediaTypes.includes(mediaType) ? mediaType : parseManifest(bytes).mediaType };
  }

  /** Stores a manifest under a tag or its digest. Throws `digest_mismatch` when the registry made something else of it. */
  async putManifest(repository: string, reference: string, bytes: Uint8Array, mediaType: string, options: CallOptions = {}): Promise<Digest> {
    const response = await this.#http.send({
      method: 'PUT',
      path: `/v2/${repository}/manifests/${reference}`,
      headers: { 'content-type': mediaType },
      body: bytes,
      ...options,
    });
    await response.discard();
    const digest = digestOf(bytes);
    const stored = response.header('docker-content-digest') ?? digest;
    if (stored !== digest) throw new AppError('digest_mismatch', { detail: `the registry stored ${digest} as ${stored}`, expected: digest, actual: stored });
    return digest;
  }

  /** False when it was not there. Registries that forbid deleting throw `registry_rejected`. */
  async deleteManifest(repository: string, digest: Digest, options: CallOptions = {}): Promise<boolean> {
    return this.#deleteReference(repository, digest, options);
  }

  /** Removes only the tag, where the registry can do that (distribution since 3); others throw `registry_rejected`. False when it was not there. */
  async deleteTag(repository: string, tag: string, options: CallOptions = {}): Promise<boolean> {
    return this.#deleteReference(repository, tag, options);
  }

  async #deleteReference(repository: string, reference: string, options: CallOptions): Promise<boolean> {
    const response = await this.#http.send({ method: 'DELETE', path: `/v2/${repository}/manifests/${reference}`, ...options }, foundOrNot);
    await response.discard();
    return response.status !== 404;
  }

  /** All tags; none when the repository does not exist. */
  async listTags(repository: string, options: CallOptions = {}): Promise<string[]> {
    return this.#list(`/v2/${repository}/tags/list?n=${pageSize}`, 'tags', options);
  }

  /** All repositories, also those that have no tags any more. */
  async listRepositories(options: CallOptions = {}): Promise<string[]> {
    return this.#list(`/v2/_catalog?n=${pageSize}`, 'repositories', options);
  }

  async #list(firstPath: string, field: 'tags' | 'repositories', options: CallOptions): Promise<string[]> {
    const found = new Set<string>();
    let path: string | undefined = firstPath;
    for (let page = 0; path && page < maxPages; page++) {
      const response: RegistryResponse = await this.#http.send({ method: 'GET', path, ...options }, foundOrNot);
      const text = (await response.read(maxPageBytes)).toString('utf8');
      if (response.status === 404) break;
      for (const name of names(text, field)) found.add(name);
      path = nextPage(response.header('link'));
      if (path && !this.#http.isOwn(path)) throw new AppError('registry_rejected', { detail: 'the next page of a list is on another server' });
    }
    return [...found];
  }

  async close(): Promise<void> {
    await this.#http.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

const mismatch = ({ digest }: Descriptor, detail: string) => new AppError('digest_mismatch', { detail: `${digest}: ${detail}`, digest });

/** Passes a blob on, one chunk late: the last one only when size and digest are right. */
async function* verifiedChunks(content: Readable, descriptor: Descriptor, onBytes?: (count: number) => void): AsyncGenerator<Uint8Array> {
  const digest = createDigest();
  let size = 0;
  let held: Uint8Array | undefined;
  for await (const chunk of content as AsyncIterable<Uint8Array>) {
    digest.update(chunk);
    size += chunk.byteLength;
    if (size > descriptor.size) break;
    if (held) {
      onBytes?.(held.byteLength);
      yield held;
    }
    held = chunk;
  }
  if (size !== descriptor.size)
    throw mismatch(descriptor, `the content has ${size < descriptor.size ? 'only ' : 'at least '}${size} bytes instead of ${descriptor.size}`);
  const actual = digest.value();
  if (actual !== descriptor.digest) throw mismatch(descriptor, `the content has the digest ${actual}`);
  if (held) {
    onBytes?.(held.byteLength);
    yield held;
  }
}

function names(text: string, field: 'tags' | 'repositories'): string[] {
  try {
    const list = (JSON.parse(text) as Record<string, unknown>)[field] ?? [];
    if (Array.isArray(list) && list.every((item) => typeof item === 'string')) return list;
  } catch {
    // Reported below.
  }
  throw new AppError('registry_rejected', { detail: `the list of ${field} is not readable` });
}

/** The target of `Link: </v2/_catalog?last=b&n=2>; rel="next"`. */
function nextPage(link: string | undefined): string | undefined {
  const match = link ? /<([^>]+)>\s*;[^,]*rel="?next"?/.exec(link) : null;
  return match?.[1];
}
