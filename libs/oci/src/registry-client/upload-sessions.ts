import { constants } from 'node:fs';
import { open, readdir, readFile, readlink, realpath, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { writeDurably } from '@airdock/disk/files/durable-file';

/** How long a registry may take to notice that the one who sent has gone. */
const settleMs = 5_000;

/** An upload that a registry has begun to take. */
export interface UploadSession {
  /** Where it goes on: the URL that the registry gave last. */
  location: string;
  /** Bytes that the registry has acknowledged. */
  offset: number;
}

/** Where one upload is remembered. */
export interface SessionSlot {
  load(): Promise<UploadSession | undefined>;
  /** On disk when it resolves. */
  save(session: UploadSession): Promise<void>;
  clear(): Promise<void>;
  /**
   * Forgets the upload at `location`, which was cancelled, and takes away what distribution 2 keeps of one that broke
   * off in the middle.
   */
  discard(location: string): Promise<void>;
}

/**
 * The unfinished uploads of one run, in a folder that survives the process: a later run goes on where the registry has
 * acknowledged bytes. Only one run at a time may use a folder.
 */
export class UploadSessions {
  constructor(
    private readonly folder: string,
    /** The registry's own folder, where it is one of this machine. */
    private readonly storageDir?: string | undefined,
  ) {}

  slot(repository: string, digest: Digest): SessionSlot {
    const path = join(this.folder, `${digestHex(digestOf(`${repository}@${digest}`))}.json`);
    return {
      load: async () => {
        const session = await readSession(path);
        if (session) await this.#trim(session);
        return session;
      },
      save: ({ location, offset }) => writeDurably(path, Buffer.from(JSON.stringify({ repository, location, offset }))),
      clear: () => rm(path, { force: true }),
      discard: async (location) => {
        await this.#removeLeftover({ repository, location });
        await rm(path, { force: true });
      },
    };
  }

  /** Forgets all uploads, after giving each to `cancel`. */
  async discard(cancel: (session: UploadSession) => Promise<void>): Promise<void> {
    for (const name of await readdir(this.folder).catch(() => [])) {
      const session = await readSession(join(this.folder, name));
      if (!session) continue;
      await cancel(session);
      await this.#removeLeftover(session);
    }
    await rm(this.folder, { recursive: true, force: true });
  }

  /**
   * distribution keeps what arrived of a piece that broke off, and gives such an upload up when it is asked to go on
   * from the last piece that it has acknowledged (registry/handlers/blobupload.go, ResumeBlobUpload). Cutting the rest
   * off lets it go on, once the registry has written what it still had of the piece. An upload that is somewhere else
   * is left alone.
   */
  async #trim(session: StoredSession): Promise<void> {
    const folder = this.#folderOf(session);
    if (!folder) return;
    const data = join(folder, 'data');
    const deadline = Date.now() + settleMs;
    while (Date.now() < deadline && (await isOpen(data))) await sleep(50);
    // A registry that was taken over may have put a link there.
    const file = await open(data, constants.O_RDWR | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
      () => undefined,
    );
    try {
      const info = await file?.stat();
      if (info?.isFile() && info.size > session.offset) await file?.truncate(session.offset);
    } finally {
      await file?.close();
    }
  }

  /** distribution 2 refuses to cancel what still arrives, or broke off. */
  async #removeLeftover(session: UploadPlace): Promise<void> {
    const folder = this.#folderOf(session);
    if (folder) await rm(folder, { recursive: true, force: true });
  }

  /** Where distribution keeps an upload, when its storage is seen here. */
  #folderOf({ repository, location }: UploadPlace): string | undefined {
    const id = new URL(location, 'http://localhost').pathname.split('/').at(-1) ?? '';
    if (this.storageDir === undefined || !/^[0-9a-f-]{36}$/.test(id)) return undefined;
    return join(this.storageDir, 'docker/registry/v2/repositories', repository, '_uploads', id);
  }
}

interface StoredSession extends UploadSession {
  repository: string;
}

type UploadPlace = Pick<StoredSession, 'repository' | 'location'>;

/** The files that processes which we may look into have open (proc_pid_fd(5)). */
export async function openFiles(): Promise<Set<string>> {
  const found = new Set<string>();
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => []))
      found.add(await readlink(`/proc/${pid}/fd/${fd}`).catch(() => ''));
  }
  return found;
}

const isOpen = async (path: string): Promise<boolean> =>
  (await openFiles()).has(await realpath(path).catch(() => path));

async function readSession(path: string): Promise<StoredSession | undefined> {
  try {
    const { repository, location, offset } = JSON.parse(await readFile(path, 'utf8')) as Partial<StoredSession>;
    if (typeof repository !== 'string' || typeof location !== 'string' || !Number.isSafeInteger(offset))
      return undefined;
    return { repository, location, offset: offset as number };
  } catch {
    // Not there, or not readable: the upload begins anew.
    return undefined;
  }
}
