import { mkdirSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { findSha256 } from '@airdock/core/checksum';
import { AppError } from '@airdock/core/errors';
import { CONFIG, type Config } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';
import { FileConfigstore, FileStore } from '@tus/file-store';
import { Server } from '@tus/server';

const expiryMs = 7 * 24 * 60 * 60 * 1000;

/**
 * Resumable uploads (https://tus.io/protocols/resumable-upload), kept as files with their state beside them: any
 * process can go on with them.
 */
@Injectable()
export class UploadService {
  private readonly directory: string;
  private readonly states: FileConfigstore;
  private readonly store: FileStore;
  private readonly server: Server;

  constructor(@Inject(CONFIG) config: Config) {
    this.directory = join(config.dataDir, 'image', 'uploads');
    this.states = new FileConfigstore(this.directory);
    this.store = new FileStore({
      directory: this.directory,
      configstore: this.states,
      expirationPeriodInMilliseconds: expiryMs,
    });
    this.server = new Server({
      path: '/v1/uploads',
      relativeLocation: true,
      datastore: this.store,
      onUploadCreate: async (_request, { metadata }) => {
        const sha256 = metadata?.sha256;
        try {
          if (sha256) findSha256(sha256, metadata?.filename ?? undefined);
        } catch (error) {
          throw { status_code: 400, body: `Upload-Metadata: ${(error as AppError).details.detail}` };
        }
        // A file name goes into rows and answers.
        for (const [key, value] of Object.entries(metadata ?? {}))
          if (key !== 'sha256' && value && /[\p{Cc}\p{Zl}\p{Zp}]/u.test(value))
            throw { status_code: 400, body: 'a text in Upload-Metadata has control characters' };
        return {};
      },
      onResponseError: (_request, error) => {
        if ('status_code' in error) return undefined;
        // What it was is for the log.
        return { status_code: 500, body: error instanceof Error ? error.message : 'unknown' };
      },
    });
  }

  /** Answers one tus request. */
  async handle(request: Request): Promise<Response> {
    mkdirSync(this.directory, { recursive: true, mode: 0o700 });
    return this.server.handleWeb(request);
  }

  /** The file of an upload that is complete. Throws `upload_not_found`. */
  async finishedPath(id: string): Promise<string> {
    const upload = await this.find(id);
    if (upload.size === undefined || upload.offset !== upload.size)
      throw new AppError('upload_not_found', {
        detail: `upload ${id} has ${upload.offset} of ${upload.size ?? 'an unknown number of'} bytes`,
      });
    return join(this.directory, id);
  }

  /** The file name that the client gave, or the id. */
  async nameOf(id: string): Promise<string> {
    return (await this.find(id)).metadata?.filename?.slice(0, 200) ?? id;
  }

  /** What the client says the whole file has: `sha256` in Upload-Metadata. */
  async declaredSha256(id: string): Promise<string | null> {
    const { metadata } = await this.find(id);
    return metadata?.sha256 ? findSha256(metadata.sha256, metadata.filename ?? undefined) : null;
  }

  async remove(id: string): Promise<void> {
    await this.store.remove(id);
  }

  /**
   * Removes uploads that nobody went on with for a week, and that are no bundle: finished or not, as their files say.
   * What the store keeps beside a file is of the moment when the upload was begun. Returns how many.
   */
  async sweep(isBundle: (id: string) => Promise<boolean>): Promise<number> {
    mkdirSync(this.directory, { recursive: true, mode: 0o700 });
    let removed = 0;
    for (const id of await this.states.list()) {
      const { mtimeMs } = (await stat(join(this.directory, id)).catch(() => undefined)) ?? {};
      if (mtimeMs === undefined || Date.now() - mtimeMs < expiryMs || (await isBundle(id))) continue;
      await this.store.remove(id);
      removed += 1;
    }
    return removed;
  }

  private async find(id: string) {
    try {
      return await this.store.getUpload(id);
    } catch (cause) {
      // As the store says of what is not there; a disk that cannot be read is something else.
      if (typeof (cause as { status_code?: unknown }).status_code !== 'number') throw cause;
      throw new AppError('upload_not_found', { detail: id }, { cause });
    }
  }
}
