import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { findParts } from '@airdock/oci/archive/joined-file';
import { type BundleFiles, openTarFiles } from '@airdock/oci/bundle/bundle-files';
import { pack } from 'tar-stream';
import type { BackupStorage, StoredFile } from './backup-storage.js';

/** The files of a store in a tar, whole or in parts: an exported backup. Only for reading. */
export class TarStorage implements BackupStorage {
  private constructor(
    readonly location: string,
    private readonly files: BundleFiles,
  ) {}

  /** Throws `bundle_not_found`, and what reading a hostile tar throws. */
  static async open(path: string, signal?: AbortSignal): Promise<TarStorage> {
    return new TarStorage(path, await openTarFiles(await findParts(path), signal));
  }

  async *list(folder: string): AsyncIterable<StoredFile> {
    for (const name of await this.files.names()) {
      if (folder !== '' && !name.startsWith(`${folder}/`)) continue;
      const file = await this.stat(name);
      if (file) yield file;
    }
  }

  async stat(name: string): Promise<StoredFile | undefined> {
    const found = await this.files.find(name);
    return found && { name, size: found.size, modifiedAt: 0 };
  }

  read(name: string, range?: { start: number }): Readable {
    const { files, location } = this;
    return Readable.from(
      (async function* () {
        const found = await files.find(name);
        if (!found) throw new AppError('backup_incomplete', { detail: `${location} has no ${name}` });
        yield* found.open(range);
      })(),
      { objectMode: false },
    );
  }

  write = readOnly;
  move = readOnly;
  remove = readOnly;
  sweep = readOnly;

  async freeBytes(): Promise<undefined> {
    return undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

async function readOnly(): Promise<never> {
  throw new TypeError('an exported backup is only read');
}

/** Makes a tar of files of a storage while it is read. What reading them throws ends it. */
export function writeTar(
  storage: BackupStorage,
  files: readonly StoredFile[],
  onBytes: (count: number) => void = () => undefined,
): Readable {
  async function* chunks(): AsyncGenerator<Buffer> {
    const tar = pack();
    const filled = fill(tar).catch((error: unknown) =>
      tar.destroy(error instanceof Error ? error : new Error(String(error))),
    );
    try {
      yield* tar as AsyncIterable<Buffer>;
    } finally {
      tar.destroy();
      await filled;
    }
  }
  async function fill(tar: ReturnType<typeof pack>): Promise<void> {
    for (const { name, size, modifiedAt } of files) {
      const entry = tar.entry({ name, size, mtime: new Date(modifiedAt), mode: 0o644 });
      // It fails with the tar, whose reader hears why; an error without a listener would end the process.
      entry.on('error', () => undefined);
      for await (const chunk of storage.read(name)) {
        onBytes((chunk as Buffer).byteLength);
        if (!entry.write(chunk))
          await new Promise<void>((resolve) => entry.once('drain', () => resolve()).once('close', () => resolve()));
        if (entry.destroyed) return;
      }
      entry.end(undefined);
    }
    tar.finalize();
  }
  return Readable.from(chunks(), { objectMode: false });
}
