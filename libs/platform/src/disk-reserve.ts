/**
 * Room for the day on which a disk is full. The database takes no row then, so that no job could begin that makes room,
 * and a garbage collection writes before it frees. So bytes and inodes are kept in small files: a hole keeps no bytes,
 * and zeros keep none where the file system compresses.
 */

import { randomBytes } from 'node:crypto';
import { access, constants, lstat, mkdir, readdir, rm, statfs, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { errnoOf } from '@airdock/core/errno';

const pieceBytes = 64 * 1024;
const pieces = 256;
/** What is given out at a time: somebody else may take it. */
const share = 64;
/** With less than this a disk counts as full. */
const lowBytes = 1024 * 1024;
const lowFiles = 32;
/** A reserve is not what fills a disk: it is made where so many times as much stays free. */
const roomy = 4;
const settleMs = 1_000;

/**
 * What this user may still write to the disk of a folder. Root may have what others may not, but for what ext4 keeps to
 * itself. Some file systems do not count files.
 */
async function roomOf(folder: string): Promise<{ bytes: number; files: number }> {
  const { blocks, bfree, bavail, bsize, files, ffree } = await statfs(folder);
  const forRoot = bfree - Math.min(blocks * 0.02, 4096);
  return {
    bytes: Math.max(process.getuid?.() === 0 ? forRoot : 0, bavail) * bsize,
    files: files > 0 ? ffree : Number.POSITIVE_INFINITY,
  };
}

/** What a disk has too little of; undefined where it has room, and where that cannot be told. */
export async function whatIsShort(folder: string): Promise<'bytes' | 'files' | undefined> {
  const room = await roomOf(folder).catch(() => undefined);
  if (!room) return undefined;
  if (room.bytes < lowBytes) return 'bytes';
  return room.files < lowFiles ? 'files' : undefined;
}

/** The kernel says so of a file system, whoever asks; what a user may not write is another matter. */
export const isMountedReadOnly = (folder: string): Promise<boolean> =>
  access(folder, constants.W_OK).then(
    () => false,
    (error: unknown) => errnoOf(error) === 'EROFS',
  );

/** Bytes and inodes kept on a disk, to be given out when it is full and something must make room. */
export class DiskReserve {
  /** When the folder was last changed while it held all pieces, ns since 1970. */
  private completeAt: bigint | undefined;

  /** `folder` is made in one that is there, on the disk that it is for. */
  constructor(readonly folder: string) {}

  /**
   * Whether the disk was full and has not got room again. The first piece is the first to go, and the first to come
   * back.
   */
  async isGivenOut(): Promise<boolean> {
    return (await lstat(this.folder).catch(() => undefined)) !== undefined && !(await this.list()).includes('piece-0');
  }

  /** Gives a part out when the disk is full. True when there was something to give. */
  async relieve(): Promise<boolean> {
    if ((await whatIsShort(dirname(this.folder))) === undefined) return false;
    const given = (await this.list()).slice(0, share);
    for (const name of given) await rm(join(this.folder, name));
    return given.length > 0;
  }

  /** As `relieve`; makes the reserve where it is gone and there is room again. */
  async keep(): Promise<void> {
    if (await this.relieve()) return;
    const { bytes, files } = await roomOf(dirname(this.folder));
    if (bytes < roomy * pieces * pieceBytes || files < roomy * pieces) return;
    // To list hundreds of names every two seconds takes more time than all else that an idle DU does.
    const changedAt = await this.changedAt();
    if (changedAt !== undefined && changedAt === this.completeAt) return;
    const there = new Set(await this.list());
    // A change within the same tick of the clock would not be seen.
    const isSettled = changedAt !== undefined && changedAt < BigInt(Date.now() - settleMs) * 1_000_000n;
    this.completeAt = there.size === pieces && isSettled ? changedAt : undefined;
    if (there.size === pieces) return;
    await mkdir(this.folder, { recursive: true, mode: 0o700 });
    for (let index = 0; index < pieces; index++)
      if (!there.has(`piece-${index}`))
        await writeFile(join(this.folder, `piece-${index}`), randomBytes(pieceBytes), { flag: 'wx', mode: 0o600 });
  }

  private async changedAt(): Promise<bigint | undefined> {
    return (await lstat(this.folder, { bigint: true }).catch(() => undefined))?.mtimeNs;
  }

  /** In the registry's storage somebody who took it over could put a link here. */
  private async list(): Promise<string[]> {
    const status = await lstat(this.folder).catch(() => undefined);
    if (status && !status.isDirectory()) await rm(this.folder);
    if (!status?.isDirectory()) return [];
    const names = (await readdir(this.folder)).filter((name) => /^piece-\d+$/.test(name));
    return names.sort((a, b) => numberOf(a) - numberOf(b));
  }
}

const numberOf = (piece: string): number => Number(piece.slice('piece-'.length));
