/**
 * A client for registries that speak the OCI distribution API, as far as images are moved and listed. It does not
 * retry, and knows no references, only names inside one registry: `copyImages` and `backupRegistry` do the rest.
 * Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
 */

import { randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestOf, isDigest } from '@airdock/core/oci/digest';
import {
  type Descriptor,
  manifestMediaTypes,
  maxManifestBytes,
  mediaTypes,
  parseManifest,
} from '@airdock/core/oci/manifest';
import type { BlobReader } from '../image/image-source.js';
import { BlobUpload, cancelUpload, type UploadOptions } from './blob-upload.js';
import { RegistryHttp, type RegistryHttpOptions, type RegistryResponse } from './registry-http.js';
import type { UploadSession } from './upload-sessions.js';

/** Of every request. */
export interface CallOptions {
  signal?: AbortSignal | undefined;
}

/** A manifest as the registry served it; its bytes have its digest. */
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

/**
 * All methods throw `registry_unavailable` when trying again may help, `registry_rejected` with the registry's own
 * `registryCode`, and the signal's reason. Many calls may run at a time. The owner calls `close`.
 *
 * @example
 * ```ts
 * await using registry = new RegistryClient('http://127.0.0.1:5100');
 * const manifest = await registry.getManifest('pause', '3.2');
 * ```
 */
export class RegistryClient implements AsyncDisposable {
  readonly #http: RegistryHttp;

  /** @param address such as `http://127.0.0.1:5100`, or `unix:PATH` */
  constructor(
    readonly address: string,
    options: RegistryHttpOptions = {},
  ) {
    this.#http = new RegistryHttp(address, options);
  }

  /** Resolves when the registry answers its API's root. */
  async ping(options: CallOptions = {}): Promise<void> {
    await (await this.#http.send({ method: 'GET', path: '/v2/', ...options })).discard();
  }

  /** Size in bytes, or undefined when this repository has no such blob. */
  async headBlob(repository: string, digest: Digest, options: CallOptions = {}): Promise<{ size: number } | undefined> {
    const response = await this.#http.send(
      { method: 'HEAD', path: `/v2/${repository}/blobs/${digest}`, ...options },
      foundOrNot,
    );
    await response.discard();
    return response.status === 404 ? undefined : { size: Number(response.header('content-length') ?? Number.NaN) };
  }

  /**
   * The bytes of a blob from `start` (default 0). Not verified: the caller hashes, and destroys the stream. Throws
   * `image_not_found`. Redirects to the registry's storage are followed, without the credential.
   */
  async getBlob(
    repository: string,
    digest: Digest,
    { start = 0, signal }: CallOptions & { start?: number } = {},
  ): Promise<Readable> {
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
      if (response.status === 404)
        throw new AppError('image_not_found', { detail: `${repository} has no blob ${digest}`, digest });
      path = this.#http.resolve(response.header('location') ?? path, path).href;
    }
    throw new AppError('registry_rejected', { detail: 'too many redirects' });
  }

  /**
   * Makes a blob of another repository known in this one, without copying. False when the registry does not do it; then
   * upload.
   */
  async mountBlob(repository: string, digest: Digest, from: string, options: CallOptions = {}): Promise<boolean> {
    const path = `/v2/${repository}/blobs/uploads/?mount=${encodeURIComponent(digest)}&from=${encodeURIComponent(from)}`;
    const response = await this.#http.send({ method: 'POST', path, headers: { 'content-length': '0' }, ...options });
    await response.discard();
    if (response.status === 201) return true;
    const session = response.header('location');
    if (session) await cancelUpload(this.#http, session);
    return false;
  }

  /**
   * Uploads a blob, in one request or, with a session to remember it by, in pieces of 64 MiB from where an earlier
   * upload has got to. It is hashed on the way and its end is held back until the digest is right, so the registry
   * never gets to see the end of wrong bytes: `digest_mismatch`. Does not look whether the blob is there. A failed
   * upload is cancelled in the registry, unless it can go on.
   */
  async uploadBlob(
    repository: string,
    descriptor: Descriptor,
    reader: BlobReader,
    options: UploadOptions = {},
  ): Promise<void> {
    await new BlobUpload(this.#http, repository, descriptor, reader, options).run();
  }

  /** Gives an unfinished upload up. Never throws. */
  async cancelUpload({ location }: UploadSession): Promise<void> {
    await cancelUpload(this.#http, location);
  }

  /** What a tag or digest points at, or undefined. */
  async headManifest(
    repository: string,
    reference: string,
    options: CallOptions = {},
  ): Promise<Descriptor | undefined> {
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

  /**
   * A manifest or index, verified against the digest asked for or announced, or undefined. Throws `digest_mismatch`.
   */
  async getManifest(
    repository: string,
    reference: string,
    options: CallOptions = {},
  ): Promise<FetchedManifest | undefined> {
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
      throw new AppError('digest_mismatch', {
        detail: `the registry answered ${repository}@${expected} with ${digest}`,
        expected,
        actual: digest,
      });
    const mediaType = response.header('content-type')?.split(';')[0]?.trim();
    return {
      bytes,
      digest,
      mediaType: mediaType && manifestMediaTypes.includes(mediaType) ? mediaType : parseManifest(bytes).mediaType,
    };
  }

  /**
   * Stores a manifest under a tag or its digest. Throws `digest_mismatch` when the registry made something else of it.
   */
  async putManifest(
    repository: string,
    reference: string,
    bytes: Uint8Array,
    mediaType: string,
    options: CallOptions = {},
  ): Promise<Digest> {
    return (await this.#putManifest(repository, reference, bytes, mediaType, options)).digest;
  }

  async #putManifest(
    repository: string,
    reference: string,
    bytes: Uint8Array,
    mediaType: string,
    options: CallOptions,
  ) {
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
    if (stored !== digest)
      throw new AppError('digest_mismatch', {
        detail: `the registry stored ${digest} as ${stored}`,
        expected: digest,
        actual: stored,
      });
    return { digest, isListed: response.header('oci-subject') !== undefined };
  }

  /**
   * Stores a manifest that names a subject. Registries without the referrers API do not list it by themselves: then it
   * is added to the list under `listTag`. Source:
   * https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-manifests-with-subject
   */
  async putReferrer(
    repository: string,
    listTag: string,
    bytes: Uint8Array,
    mediaType: string,
    options: CallOptions = {},
  ): Promise<void> {
    const { digest, isListed } = await this.#putManifest(repository, digestOf(bytes), bytes, mediaType, options);
    if (isListed) return;
    const list = await this.getManifest(repository, listTag, options);
    const known = list
      ? ((JSON.parse(list.bytes.toString('utf8')) as { manifests?: Descriptor[] }).manifests ?? [])
      : [];
    if (known.some((descriptor) => descriptor.digest === digest)) return;
    const { artifactType, config, annotations } = JSON.parse(Buffer.from(bytes).toString('utf8')) as {
      artifactType?: string;
      config?: Descriptor;
      annotations?: Record<string, string>;
    };
    const descriptor = {
      mediaType,
      digest,
      size: bytes.byteLength,
      artifactType: artifactType ?? config?.mediaType,
      annotations,
    };
    const index = { schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests: [...known, descriptor] };
    await this.putManifest(repository, listTag, Buffer.from(JSON.stringify(index)), mediaTypes.ociIndex, options);
  }

  /** False when it was not there. Registries that forbid deleting throw `registry_rejected`. */
  async deleteManifest(repository: string, digest: Digest, options: CallOptions = {}): Promise<boolean> {
    return this.#deleteReference(repository, digest, options);
  }

  /** Removes only the tag; what it leads to stays, with its other tags. False when it was not there. */
  async deleteTag(repository: string, tag: string, options: CallOptions = {}): Promise<boolean> {
    try {
      return await this.#deleteReference(repository, tag, options);
    } catch (error) {
      if (!(error instanceof AppError) || ![400, 405].includes(Number(error.details.registryStatus))) throw error;
    }
    // distribution 2 deletes manifests, with all tags that they have: so the tag is given one of its own first.
    if (!(await this.headManifest(repository, tag, options))) return false;
    const content = Buffer.from(JSON.stringify({ deleted: tag, id: randomUUID() }));
    const config = {
      mediaType: 'application/vnd.airdock.deleted.v1+json',
      digest: digestOf(content),
      size: content.byteLength,
    };
    await this.uploadBlob(
      repository,
      config,
      { size: content.byteLength, open: () => Readable.from([content]) },
      options,
    );
    const manifest = Buffer.from(
      JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config, layers: [] }),
    );
    return this.deleteManifest(
      repository,
      await this.putManifest(repository, tag, manifest, mediaTypes.ociManifest, options),
      options,
    );
  }

  async #deleteReference(repository: string, reference: string, options: CallOptions): Promise<boolean> {
    const response = await this.#http.send(
      { method: 'DELETE', path: `/v2/${repository}/manifests/${reference}`, ...options },
      foundOrNot,
    );
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
    const asked = new Set<string>();
    let path: string | undefined = firstPath;
    while (path) {
      // A list that is cut short would be taken for whole, and what it lacks for gone.
      if (asked.has(path) || asked.size === maxPages)
        throw new AppError('registry_rejected', { detail: `the list of ${field} has no end` });
      asked.add(path);
      const response: RegistryResponse = await this.#http.send({ method: 'GET', path, ...options }, foundOrNot);
      const text = (await response.read(maxPageBytes)).toString('utf8');
      if (response.status === 404) break;
      for (const name of names(text, field)) found.add(name);
      const next = nextPage(response.header('link'));
      path = next && this.#http.resolve(next, path).href;
      if (path && !this.#http.isOwn(path))
        throw new AppError('registry_rejected', { detail: 'the next page of a list is on another server' });
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
  const match = link ? /<([^>]+)>\s*;[^,]*rel="?next"?/i.exec(link) : null;
  return match?.[1];
}
