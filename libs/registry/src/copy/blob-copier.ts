import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import type { ImageSource } from '@airdock/oci/image/image-source';
import type { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { type Ask, lookUp, type RetryOptions, withRetry } from '@airdock/oci/registry-client/retry';
import type { UploadSessions } from '@airdock/oci/registry-client/upload-sessions';
import type { LimitFunction } from 'p-limit';
import type { RegistryStorage } from '../folder/registry-storage.js';

/** Where blobs come from and go to. */
export interface BlobCopierOptions {
  source: ImageSource;
  registry: RegistryClient;
  /** The registry's own folder, when it is one of this machine: blobs are placed there instead of uploaded. */
  storage?: RegistryStorage | undefined;
  /** Its folder, where what is damaged may be set aside, so that an upload brings it again. */
  repairs?: RegistryStorage | undefined;
  /** Remembers uploads, so that another run goes on inside a blob. */
  sessions?: UploadSessions | undefined;
  /** Bounds the requests in flight. */
  limit: LimitFunction;
  signal?: AbortSignal | undefined;
  retry?: RetryOptions | undefined;
}

/**
 * Brings the blobs of one run into repositories: what is there is left alone, the rest is uploaded once and mounted
 * everywhere else.
 */
export class BlobCopier {
  /** The repository that a blob is in, or will be in when the promise resolves. */
  readonly #homes = new Map<Digest, { repository: string; arrived: Promise<void> }>();
  readonly #running = new Map<string, Promise<void>>();

  constructor(private readonly options: BlobCopierOptions) {}

  /**
   * Resolves when the repository has the blob. `onBytes` gets how much of the blob is done, which never shrinks, over
   * retries too. Throws `digest_mismatch`, `registry_rejected`, `registry_unavailable` after the last attempt, and the
   * signal's reason.
   */
  async ensure(repository: string, descriptor: Descriptor, onBytes?: (bytesDone: number) => void): Promise<void> {
    const key = `${repository}@${descriptor.digest}`;
    let work = this.#running.get(key);
    if (!work) {
      work = this.#bring(repository, descriptor, onBytes);
      this.#running.set(key, work);
    }
    await work;
    onBytes?.(descriptor.size);
  }

  /** Throws `registry_rejected` unless the registry says that the repository has the blob, with its size. */
  async verify(repository: string, descriptor: Descriptor, ask: Ask = withRetry): Promise<void> {
    const { digest, size } = descriptor;
    const { registry, storage, repairs = storage, limit, signal, retry } = this.options;
    if (await storage?.has(repository, descriptor)) return;
    if (await repairs?.isDamaged(descriptor))
      throw new AppError('registry_rejected', {
        detail: `blob ${digest} is damaged`,
        digest,
        registryCode: 'BLOB_UNKNOWN',
      });
    const found = await ask(() => limit(() => registry.headBlob(repository, digest, { signal })), signal, retry);
    if (found?.size === size) return;
    throw new AppError('registry_rejected', {
      detail: `${repository} has ${found ? `${found.size} bytes of` : 'no'} blob ${digest}`,
      digest,
      ...(found ? {} : { registryCode: 'BLOB_UNKNOWN' }),
    });
  }

  /** The next `ensure` looks for these blobs again, in every repository. */
  forget(blobs: readonly Descriptor[]): void {
    const digests = new Set(blobs.map(({ digest }) => digest));
    for (const digest of digests) this.#homes.delete(digest);
    for (const key of this.#running.keys())
      if (digests.has(key.slice(key.indexOf('@') + 1) as Digest)) this.#running.delete(key);
  }

  async #bring(repository: string, descriptor: Descriptor, onBytes?: (bytesDone: number) => void): Promise<void> {
    const { digest, size } = descriptor;
    const { registry, storage, repairs, limit, signal, retry } = this.options;
    if (storage) return this.#place(storage, repository, descriptor, onBytes);
    const found = await lookUp(() => limit(() => registry.headBlob(repository, digest, { signal })), signal, retry);
    if (found?.size === size && !(await repairs?.isDamaged(descriptor))) {
      if (!this.#homes.has(digest)) this.#homes.set(digest, { repository, arrived: Promise.resolve() });
      return;
    }
    const home = this.#homes.get(digest);
    if (home && home.repository !== repository) {
      // Waiting must not hold one of the limited places: the upload that is awaited needs one itself.
      const arrived = await home.arrived.then(
        () => true,
        () => false,
      );
      if (arrived && (await this.#call(() => registry.mountBlob(repository, digest, home.repository, { signal }))))
        return;
      return this.#upload(repository, descriptor, onBytes);
    }
    const arrived = this.#upload(repository, descriptor, onBytes);
    this.#homes.set(digest, { repository, arrived });
    return arrived;
  }

  /** A second repository waits for the first one to bring the bytes, and needs only a link then. */
  async #place(
    storage: RegistryStorage,
    repository: string,
    descriptor: Descriptor,
    onBytes?: (bytesDone: number) => void,
  ): Promise<void> {
    if (await storage.keep(repository, descriptor)) return;
    const { source, signal, limit } = this.options;
    let bytesDone = 0;
    const onPlaced = (count: number) => {
      bytesDone += count;
      onBytes?.(bytesDone);
    };
    const place = () =>
      storage.place(repository, descriptor, () => source.blob(descriptor), { signal, limit, onBytes: onPlaced });
    const home = this.#homes.get(descriptor.digest);
    if (home) return home.arrived.catch(() => undefined).then(place);
    const arrived = place();
    this.#homes.set(descriptor.digest, { repository, arrived });
    return arrived;
  }

  #upload(repository: string, descriptor: Descriptor, onBytes?: (bytesDone: number) => void): Promise<void> {
    const { source, registry, repairs, signal, sessions } = this.options;
    let best = 0;
    return this.#call(async () => {
      let bytesDone = 0;
      await repairs?.setAsideDamaged(descriptor);
      const reader = await source.blob(descriptor);
      await registry.uploadBlob(repository, descriptor, reader, {
        signal,
        session: sessions?.slot(repository, descriptor.digest),
        onBytes: (count) => {
          bytesDone += count;
          if (bytesDone > best) onBytes?.(bytesDone);
          best = Math.max(best, bytesDone);
        },
      });
    });
  }

  #call<T>(work: () => Promise<T>): Promise<T> {
    const { limit, signal, retry } = this.options;
    return withRetry(() => limit(work), signal, retry);
  }
}
