import { readdir, realpath, rm, stat } from 'node:fs/promises';
import { basename, join, sep } from 'node:path';
import type { Readable } from 'node:stream';
import { openBundle } from '@airdock/adapters/oci-client/bundle';
import { writeDockerArchive } from '@airdock/adapters/oci-client/docker-archive-writer';
import type { ImageSource, SourceImage } from '@airdock/adapters/oci-client/image-source';
import { AppError } from '@airdock/core/errors';
import { formatPlatform } from '@airdock/core/oci/manifest';
import { formatReference, localReferences, parseReference } from '@airdock/core/oci/reference';
import { CONFIG, type Config } from '@airdock/platform/config';
import { now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { UploadService } from '../upload/upload.service.js';
import { BundleEntity, type SeenImage } from './bundle.entity.js';
import type { Bundle, CreateBundle, DockerArchiveQuery } from './bundle.schema.js';

export const readBundleJobType = 'image.read-bundle';

/** Bundles that were carried in: registered where they lie, read once, and opened again for each push. */
@Injectable()
export class BundleService {
  readonly workDir: string;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(BundleEntity, 'image') private readonly bundles: Repository<BundleEntity>,
    private readonly uploads: UploadService,
    private readonly jobs: JobsService,
  ) {
    this.workDir = join(config.dataDir, 'image', 'work');
  }

  /** Throws `bundle_path_forbidden`, `bundle_not_found`, `upload_not_found`. */
  async create(request: JobRequest, { path, uploadId }: CreateBundle): Promise<Job> {
    const file = path !== undefined ? await this.resolvePath(path) : await this.uploads.finishedPath(uploadId ?? '');
    const { size, fingerprint, isAllowed } = await fingerprintOf(file);
    if (!isAllowed) throw new AppError('bundle_not_found', { detail: `${path} is neither a file nor a folder` });
    const name = path !== undefined ? basename(file) : await this.uploads.nameOf(uploadId ?? '');
    const id = newId();
    const row = {
      id,
      name,
      path: file,
      uploadId: uploadId ?? null,
      sizeBytes: String(size),
      fingerprint,
      format: null,
      images: null,
      jobId: request.id,
      createdAt: now(),
    };
    return this.jobs.submit({ ...request, type: readBundleJobType, resource: `/v1/bundles/${id}` }, [this.bundles.createQueryBuilder().insert().values(row)]);
  }

  /** Real path of a file inside the bundle folders; links that lead out of them are not followed. */
  private async resolvePath(path: string): Promise<string> {
    const forbidden = new AppError('bundle_path_forbidden', {
      detail: `${path} is not inside ${this.config.bundleDirs.join(', ') || 'any folder: airdock.bundleDirs is empty'}`,
    });
    if (path.includes('\0')) throw forbidden;
    const isInside = (folder: string, file: string) => file.startsWith(folder.endsWith(sep) ? folder : folder + sep);
    const folders = await Promise.all(this.config.bundleDirs.map((folder) => realpath(folder).catch(() => undefined)));
    const candidates = path.startsWith(sep) ? [path] : this.config.bundleDirs.map((folder) => join(folder, path));
    for (const candidate of candidates) {
      const real = await realpath(candidate).catch(() => undefined);
      if (real && folders.some((folder) => folder !== undefined && isInside(folder, real))) return real;
      // Whether a file exists outside the folders is nobody's business.
      if (!real && this.config.bundleDirs.some((folder) => isInside(folder, join(candidate)))) throw new AppError('bundle_not_found', { detail: path });
    }
    throw forbidden;
  }

  async list(query: PageQuery): Promise<Page<Bundle>> {
    const { items, nextCursor } = await findPage(this.bundles, query);
    const jobs = await this.jobs.byIds(items.map(({ jobId }) => jobId));
    return { items: items.map((row) => this.toResource(row, jobs.get(row.jobId))), nextCursor };
  }

  async get(id: string): Promise<Bundle> {
    const row = await getRow(this.bundles, id);
    return this.toResource(row, await this.jobs.find(row.jobId));
  }

  /** Forgets a bundle, and removes the file of an upload; a file on the site's own disk is left alone. */
  async remove(id: string): Promise<void> {
    const row = await getRow(this.bundles, id);
    await this.bundles.delete({ id });
    if (row.uploadId) await this.uploads.remove(row.uploadId);
  }

  /** What is inside a bundle. Throws `bundle_not_ready` until it has been read. */
  async images(id: string): Promise<SeenImage[]> {
    const row = await getRow(this.bundles, id);
    if (!row.images) throw new AppError('bundle_not_ready', { detail: `see job ${row.jobId}`, jobId: row.jobId });
    return row.images;
  }

  /** Reads names, platforms and sizes, and keeps them. Everything that can be wrong with a bundle without reading its layers is found here. */
  async read(id: string, signal: AbortSignal): Promise<SeenImage[]> {
    const row = await getRow(this.bundles, id);
    await using source = await this.open(id, signal);
    const images = source.images.map(toSeenImage);
    for (const { names, digest } of images) {
      const wrong = names.find((name) => digest && (parseReference(name).digest ?? digest) !== digest);
      if (wrong) throw new AppError('digest_mismatch', { detail: `${wrong} names another digest than its content has: ${digest}` });
    }
    await this.bundles.update({ id: row.id }, { images, format: source.format });
    return images;
  }

  /** Opens a bundle for reading; the caller disposes the source. Throws `bundle_changed` and whatever is wrong with the file. */
  async open(id: string, signal?: AbortSignal): Promise<ImageSource> {
    const row = await getRow(this.bundles, id);
    const current = await fingerprintOf(row.path).catch((cause: unknown) => {
      throw new AppError('bundle_not_found', { detail: row.path }, { cause });
    });
    if (current.fingerprint !== row.fingerprint) throw new AppError('bundle_changed', { detail: row.path });
    return openBundle(row.path, { workDir: this.workDir, signal });
  }

  /** The images as `docker load` takes them, for a host without a copy on any disk. */
  async dockerArchive(id: string, { platform, names, image: wanted }: DockerArchiveQuery, signal: AbortSignal): Promise<Readable> {
    await this.images(id);
    const source = await this.open(id, signal);
    try {
      const [os = '', architecture = '', variant] = platform.split('/');
      const chosen = source.images
        .filter((image) => !wanted || image.names.some((name) => wanted.includes(name)))
        .map((image) => ({ image, repoTags: names === 'local' ? this.localNames(image).map(({ full }) => full) : image.names }));
      if (chosen.length === 0) throw new AppError('image_not_found', { detail: `none of ${wanted?.join(', ') ?? 'the images'} is in the bundle` });
      for (const { image } of chosen) await source.prepare(image, { signal });
      const stream = writeDockerArchive(source, chosen, { os, architecture, variant }, signal);
      stream.once('close', () => void source[Symbol.asyncDispose]());
      return stream;
    } catch (error) {
      await source[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Removes unpacked bundles and unfinished files of workers that were killed, and compressed layers that nobody asked for in a month. Returns how many. */
  async sweep(): Promise<number> {
    const dayMs = 24 * 60 * 60 * 1000;
    let removed = 0;
    for (const folder of ['unpacked', 'layers']) {
      for (const name of await readdir(join(this.workDir, folder)).catch(() => [])) {
        const path = join(this.workDir, folder, name);
        const { mtimeMs = Date.now() } = (await stat(path).catch(() => undefined)) ?? {};
        const keepMs = folder === 'unpacked' || name.endsWith('.part') ? dayMs : 30 * dayMs;
        if (Date.now() - mtimeMs < keepMs) continue;
        await rm(path, { force: true });
        removed += 1;
      }
    }
    return removed;
  }

  /** The names that an image gets in the local registry, the first one first. */
  localNames({ names }: Pick<SourceImage, 'names'>): { full: string; repository: string; tag: string | undefined }[] {
    return names
      .map(parseReference)
      .flatMap((upstream) => localReferences(upstream, this.localRegistry))
      .map((reference) => ({ full: formatReference(reference), repository: reference.repository, tag: reference.tag }));
  }

  get localRegistry(): string {
    return `localhost:${this.config.registry.port}`;
  }

  private toResource(row: BundleEntity, job: JobEntity | undefined): Bundle {
    const isOver = job === undefined || job.state === 'failed' || job.state === 'cancelled';
    return {
      ...row,
      path: row.uploadId ? null : row.path,
      sizeBytes: Number(row.sizeBytes),
      state: row.images ? 'ready' : isOver ? 'invalid' : 'reading',
      images: (row.images ?? []).map((image) => ({ ...image, localReferences: this.localNames(image).map(({ full }) => full) })),
    };
  }
}

export const toSeenImage = (image: SourceImage): SeenImage => ({
  names: image.names,
  digest: image.root?.digest ?? null,
  imageIds: image.configDigests,
  platforms: image.platforms.map(formatPlatform),
  sizeBytes: image.sizeBytes,
});

async function fingerprintOf(path: string): Promise<{ size: number; fingerprint: string; isAllowed: boolean }> {
  const info = await stat(path);
  return { size: info.size, fingerprint: `${info.size}-${info.mtimeMs}-${info.ino}`, isAllowed: info.isFile() || info.isDirectory() };
}
