import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import {
  AbortMultipartUploadCommand,
  CopyObjectCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  PutObjectCommand,
  paginateListObjectsV2,
  S3Client,
  S3ServiceException,
} from '@aws-sdk/client-s3';
import { Upload } from '@aws-sdk/lib-storage';
import {
  type BackupStorage,
  maxStoredFiles,
  type StoredFile,
  tooManyFiles,
  type WriteOptions,
} from './backup-storage.js';

/** A bucket, a place in it, and who asks. */
export interface S3StorageOptions {
  endpoint: string;
  region: string;
  bucket: string;
  /** Empty, or ends with `/`. */
  prefix: string;
  accessKeyId: string;
  secretAccessKey: string;
  /** Whether the bucket stands in the path, as most servers on site want it. */
  pathStyle: boolean;
}

/** Larger content is sent in parts, of which two are in memory at a time. */
const minPartBytes = 5 * 1024 * 1024;
const maxParts = 10_000;

/** A prefix of a bucket of an S3-compatible server. */
export class S3Storage implements BackupStorage {
  readonly location: string;
  readonly #client: S3Client;

  constructor(private readonly options: S3StorageOptions) {
    const { endpoint, region, accessKeyId, secretAccessKey, pathStyle, bucket, prefix } = options;
    this.location = `s3://${bucket}/${prefix}`;
    this.#client = new S3Client({
      ...{ endpoint, region, credentials: { accessKeyId, secretAccessKey }, forcePathStyle: pathStyle },
      // Many servers on site do not know the newer checksums; every byte is hashed by us anyway.
      ...{ requestChecksumCalculation: 'WHEN_REQUIRED', responseChecksumValidation: 'WHEN_REQUIRED' },
      maxAttempts: 5,
      // Without them a connection that is gone would be waited for without end.
      requestHandler: { connectionTimeout: 10_000, socketTimeout: 60_000 },
    });
  }

  async *list(folder: string): AsyncIterable<StoredFile> {
    const { bucket, prefix } = this.options;
    const pages = paginateListObjectsV2(
      { client: this.#client },
      { Bucket: bucket, Prefix: `${prefix}${folder === '' ? '' : `${folder}/`}` },
    );
    let count = 0;
    try {
      for await (const { Contents = [] } of pages) {
        count += Contents.length;
        if (count > maxStoredFiles) throw tooManyFiles(this.location);
        for (const { Key = '', Size = 0, LastModified } of Contents)
          yield { name: Key.slice(prefix.length), size: Size, modifiedAt: LastModified?.getTime() ?? 0 };
      }
    } catch (error) {
      throw this.#away(error);
    }
  }

  async stat(name: string): Promise<StoredFile | undefined> {
    try {
      const { ContentLength = 0, LastModified } = await this.#client.send(new HeadObjectCommand(this.#key(name)));
      return { name, size: ContentLength, modifiedAt: LastModified?.getTime() ?? 0 };
    } catch (error) {
      if (statusOf(error) === 404) return undefined;
      throw this.#away(error);
    }
  }

  read(name: string, { start }: { start: number } = { start: 0 }): Readable {
    const get = new GetObjectCommand({ ...this.#key(name), ...(start > 0 && { Range: `bytes=${start}-` }) });
    const content = async function* (this: S3Storage): AsyncGenerator<Uint8Array> {
      try {
        const { Body } = await this.#client.send(get);
        yield* Body as Readable as AsyncIterable<Uint8Array>;
      } catch (error) {
        throw this.#away(error);
      }
    };
    return Readable.from(content.call(this), { objectMode: false });
  }

  async write(
    name: string,
    content: Readable | Uint8Array,
    { signal, sizeHint = 0 }: WriteOptions = {},
  ): Promise<void> {
    try {
      signal?.throwIfAborted();
      if (content instanceof Uint8Array) {
        await this.#client.send(
          new PutObjectCommand({ ...this.#key(name), Body: content }),
          signal ? { abortSignal: signal } : {},
        );
        return;
      }
      const partSize = Math.max(minPartBytes, Math.ceil((sizeHint * 1.1) / maxParts));
      const upload = new Upload({
        client: this.#client,
        params: { ...this.#key(name), Body: content },
        partSize,
        queueSize: 2,
        leavePartsOnError: true,
      });
      const abort = () => void upload.abort();
      signal?.addEventListener('abort', abort, { once: true });
      try {
        await upload.done();
      } catch (error) {
        // The client would tell why it could not take back what was sent, in place of why it failed.
        await this.#takeBack(name, (upload as unknown as { uploadId?: string }).uploadId);
        throw error;
      } finally {
        signal?.removeEventListener('abort', abort);
      }
    } catch (error) {
      signal?.throwIfAborted();
      // What its content failed with is no fault of the server; the client ends the content of what the server has
      // refused.
      throw content instanceof Readable && content.errored === error ? error : this.#refused(error);
    } finally {
      if (content instanceof Readable) content.destroy();
    }
  }

  /** Parts of an upload that failed; a prune finds what stays. */
  async #takeBack(name: string, UploadId: string | undefined): Promise<void> {
    if (UploadId)
      await this.#client.send(new AbortMultipartUploadCommand({ ...this.#key(name), UploadId })).catch(() => undefined);
  }

  async move(from: string, to: string): Promise<void> {
    const { bucket, prefix } = this.options;
    try {
      await this.#client.send(
        new CopyObjectCommand({ ...this.#key(to), CopySource: encodeURI(`${bucket}/${prefix}${from}`) }),
      );
    } catch (error) {
      throw this.#refused(error);
    }
    await this.remove(from);
  }

  async remove(name: string): Promise<void> {
    try {
      await this.#client.send(new DeleteObjectCommand(this.#key(name)));
    } catch (error) {
      if (statusOf(error) !== 404) throw this.#refused(error);
    }
  }

  /** Uploads that nobody completes; the server does not say how large they are. */
  async sweep(): Promise<number> {
    const { bucket, prefix } = this.options;
    try {
      const { Uploads = [] } = await this.#client.send(
        new ListMultipartUploadsCommand({ Bucket: bucket, Prefix: prefix }),
      );
      for (const { Key, UploadId } of Uploads)
        await this.#client.send(new AbortMultipartUploadCommand({ Bucket: bucket, Key, UploadId }));
    } catch (error) {
      // Not every server lists them; then it has to be told to end them by itself.
      if (![400, 404, 405, 501].includes(statusOf(error) ?? 0)) throw this.#away(error);
    }
    return 0;
  }

  async freeBytes(): Promise<undefined> {
    return undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client.destroy();
  }

  #key(name: string): { Bucket: string; Key: string } {
    return { Bucket: this.options.bucket, Key: `${this.options.prefix}${name}` };
  }

  /** Why it was not written to: with a key that may only read, or without room, where reading goes on. */
  #refused(error: unknown): unknown {
    const { name } = error as Error;
    const detail = `${this.location}: ${name}`.slice(0, 500);
    if (statusOf(error) === 507 || /StorageFull|QuotaExceeded|InsufficientStorage/.test(name))
      return new AppError(
        'space_insufficient',
        { detail: `${detail}: delete backups and prune, or make room there otherwise` },
        { cause: error },
      );
    // A wrong key is refused for reading too, with names of its own.
    if (statusOf(error) === 405 || (statusOf(error) === 403 && /^(?:AccessDenied|AllAccessDisabled)$/.test(name)))
      return new AppError('backup_target_read_only', { detail }, { cause: error });
    return this.#away(error);
  }

  /** Whatever cannot be cured by asking for something else: no answer, no bucket, no right. */
  #away(error: unknown): unknown {
    if (error instanceof AppError) return error;
    const { name, message } = error as Error;
    return new AppError(
      'backup_target_unavailable',
      { detail: `${this.location}: ${name} ${message}`.slice(0, 500) },
      { cause: error },
    );
  }
}

const statusOf = (error: unknown): number | undefined =>
  error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined;
