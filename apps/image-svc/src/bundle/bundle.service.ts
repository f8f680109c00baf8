import { readdir, rm, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Readable } from 'node:stream';
import { findSha256 } from '@airdock/core/checksum';
import { AppError } from '@airdock/core/errors';
import { digestHex } from '@airdock/core/oci/digest';
import { parseReference, withoutDigest } from '@airdock/core/oci/reference';
import { dockerLoad, runsOn } from '@airdock/core/oci/runs';
import { createPooledDigest } from '@airdock/disk/files/hash-pool';
import { statRegularFile } from '@airdock/disk/files/regular-file';
import { findParts, JoinedFile } from '@airdock/oci/archive/joined-file';
import { layerCacheIn, openBundle } from '@airdock/oci/bundle/bundle';
import { writeDockerArchive } from '@airdock/oci/bundle/docker-archive-writer';
import type { ImageSource, UnusableImage } from '@airdock/oci/image/image-source';
import { allowedPath } from '@airdock/platform/allowed-path';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job, JobState } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { ImageService } from '../image/image.service.js';
import { LocalNamesService } from '../image/local-names.service.js';
import { type SeenImage, toSeenImage } from '../image/seen-image.schema.js';
import { PushPlanService } from '../push-plan/push-plan.service.js';
import { UploadService } from '../upload/upload.service.js';
import { BundleEntity } from './bundle.entity.js';
import type { Bundle, ContainingBundle, CreateBundle, DockerArchiveQuery } from './bundle.schema.js';

export const readBundleJobType = 'image.read-bundle';

/** Bundles that were carried in: registered where they lie, read once, and opened again for each push. */
@Injectable()
export class BundleService {
  readonly workDir: string;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(BundleEntity, 'image') private readonly bundles: Repository<BundleEntity>,
    private readonly uploads: UploadService,
    private readonly catalogue: ImageService,
    private readonly names: LocalNamesService,
    private readonly plans: PushPlanService,
    private readonly jobs: JobsService,
  ) {
    this.workDir = join(config.dataDir, 'image', 'work');
  }

  /**
   * Throws `bundle_path_forbidden`, `bundle_not_found`, `upload_not_found`, `reference_invalid`, `request_invalid` for
   * the checksum.
   */
  async create(request: JobRequest, { path, uploadId, sha256, names, strict }: CreateBundle): Promise<Job> {
    for (const reference of Object.values(names ?? {}).flat()) parseReference(reference);
    const file = path !== undefined ? await this.resolvePath(path) : await this.uploads.finishedPath(uploadId ?? '');
    const { size, fingerprint, isAllowed } = await fingerprintOf(file);
    if (!isAllowed) throw new AppError('bundle_not_found', { detail: `${path} is neither a file nor a folder` });
    const name = path !== undefined ? basename(file) : await this.uploads.nameOf(uploadId ?? '');
    const declared = sha256 === undefined ? undefined : findSha256(sha256, name);
    const id = newId();
    const row = columns<BundleEntity>({
      id,
      name,
      path: file,
      uploadId: uploadId ?? null,
      sizeBytes: String(size),
      fingerprint,
      names: names ?? {},
      sha256: declared ?? (uploadId === undefined ? null : await this.uploads.declaredSha256(uploadId)),
      format: null,
      images: null,
      unusable: null,
      strict,
      lists: null,
      plan: null,
      jobId: request.id,
      createdAt: now(),
    });
    return this.jobs.submit({ ...request, type: readBundleJobType, resource: `/v1/bundles/${id}` }, [
      this.bundles.createQueryBuilder().insert().values(row),
    ]);
  }

  /** Real path of a file inside the bundle folders; links that lead out of them are not followed. */
  private async resolvePath(path: string): Promise<string> {
    const { bundleDirs } = this.config;
    const found = await allowedPath(bundleDirs, path);
    if (found.path !== undefined) return found.path;
    if (found.refusal === 'unreadable') throw new AppError('bundle_unreadable', { detail: `${path}: ${found.why}` });
    if (found.refusal === 'missing') throw new AppError('bundle_not_found', { detail: path });
    throw new AppError('bundle_path_forbidden', {
      detail: `${path} is not inside ${bundleDirs.join(', ') || 'any folder: airdock.bundleDirs is empty'}`,
    });
  }

  list(query: PageQuery): Promise<Page<Bundle>> {
    return findPageWithState(this.bundles, this.jobs, query, (row, state) => this.toResource(row, state));
  }

  get(id: string): Promise<Bundle> {
    return getWithState(this.bundles, this.jobs, id, (row, state) => this.toResource(row, state));
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

  /** What is in a bundle and stays behind. */
  async unusable(id: string): Promise<UnusableImage[]> {
    return (await getRow(this.bundles, id)).unusable ?? [];
  }

  /**
   * The images of a list inside the bundle; of the bundle itself when it has none. Throws `bundle_not_ready`,
   * `image_list_unclear`.
   */
  async listOf(id: string, name?: string): Promise<string[]> {
    const all = (await this.images(id)).flatMap(({ names }) => names);
    const lists = (await getRow(this.bundles, id)).lists ?? [];
    if (lists.length === 0 && name === undefined) return all;
    const found = name === undefined ? lists : lists.filter((list) => list.name === name);
    const [only] = found;
    if (only && found.length === 1) return only.images;
    throw new AppError('image_list_unclear', {
      detail: `the bundle has ${lists.map((list) => list.name).join(', ') || 'no list'}`,
      lists: lists.map((list) => list.name),
    });
  }

  /** The bundles that were read and contain images of these upstream references, newest first. */
  async containing(upstreams: readonly string[]): Promise<Map<string, ContainingBundle[]>> {
    const wanted = new Map(upstreams.map((upstream) => [withoutDigest(upstream), upstream]));
    const found = new Map<string, ContainingBundle[]>();
    for (const { id, name, images } of await this.bundles.find({
      select: { id: true, name: true, images: true },
      order: { id: 'DESC' },
    }))
      for (const { names, platforms, zstdPlatforms = [] } of images ?? [])
        for (const imageName of names) {
          const upstream = wanted.get(imageName);
          if (upstream) found.set(upstream, [...(found.get(upstream) ?? []), { id, name, platforms, zstdPlatforms }]);
        }
    return found;
  }

  /**
   * Reads names, platforms and sizes, and keeps them. Everything that can be wrong with a bundle without reading its
   * layers is found here, and a declared checksum that its bytes do not have. What was found is compared with the
   * registry.
   */
  @RunsJob(readBundleJobType)
  async read({ resourceId: id, signal, progress }: JobContext): Promise<{ images: number; unusable: number }> {
    const row = await getRow(this.bundles, id);
    if (row.sha256) await this.checkSha256(row, row.sha256, { signal, progress });
    progress({ phase: 'read', itemsTotal: 1 });
    await using source = await this.open(id, signal);
    const images = source.images.map(toSeenImage);
    const plan = (await this.plans.preview(source, signal)) ?? null;
    await this.bundles.update(
      { id: row.id },
      columns<BundleEntity>({
        images,
        unusable: [...source.unusable],
        format: source.format,
        lists: [...(source.lists ?? [])],
        plan,
      }),
    );
    return { images: images.length, unusable: source.unusable.length };
  }

  private async checkSha256(
    { path, sizeBytes }: BundleEntity,
    sha256: string,
    { signal, progress }: Pick<JobContext, 'signal' | 'progress'>,
  ): Promise<void> {
    await using file = await openParts(path);
    const bytesTotal = Number(sizeBytes);
    const digest = createPooledDigest();
    let bytesDone = 0;
    for await (const chunk of file.stream(0, file.size)) {
      signal.throwIfAborted();
      await digest.update(chunk as Buffer);
      bytesDone += (chunk as Buffer).byteLength;
      progress({ phase: 'checksum', bytesDone, bytesTotal });
    }
    const actual = digestHex(await digest.value());
    if (actual === sha256) return;
    throw new AppError('digest_mismatch', {
      detail: `the file has the sha256 ${actual}, and was declared with ${sha256}`,
      expected: sha256,
      actual,
    });
  }

  /**
   * Opens a bundle for reading; the caller disposes the source. Throws `bundle_changed` and whatever is wrong with the
   * file.
   */
  async open(id: string, signal?: AbortSignal): Promise<ImageSource> {
    const row = await getRow(this.bundles, id);
    // A folder on the way may have become a link since it was registered.
    if (!row.uploadId && (await this.resolvePath(row.path)) !== row.path)
      throw new AppError('bundle_changed', { detail: row.path });
    const current = await fingerprintOf(row.path).catch((cause: unknown) => {
      throw cause instanceof AppError ? cause : new AppError('bundle_not_found', { detail: row.path }, { cause });
    });
    if (current.fingerprint !== row.fingerprint) throw new AppError('bundle_changed', { detail: row.path });
    return openBundle(row.path, { workDir: this.workDir, names: row.names, isStrict: row.strict ?? false, signal });
  }

  /** The images as `docker load` takes them, for a host without a copy on any disk. */
  async dockerArchive(
    id: string,
    { platform, names, image: wanted }: DockerArchiveQuery,
    signal: AbortSignal,
  ): Promise<Readable> {
    await this.images(id);
    const source = await this.open(id, signal);
    try {
      const [os = '', architecture = '', variant] = platform.split('/');
      const where = { platform, runtime: dockerLoad };
      // What is asked for by name is there or an error; of the whole bundle comes what runs there.
      const images = source.images.filter((image) =>
        wanted ? image.names.some((name) => wanted.includes(name)) : runsOn(toSeenImage(image), where),
      );
      const localNames = (await this.names.assign(images.map(toSeenImage))).names;
      const named = images.map((image, index) => ({
        image,
        repoTags: taggedOf(names === 'local' ? (localNames[index] ?? []).map(({ full }) => full) : image.names),
      }));
      // Without a name it would be there for nobody.
      const chosen = wanted ? named : named.filter(({ repoTags }) => repoTags.length > 0);
      if (chosen.length === 0)
        throw new AppError('image_not_found', {
          detail: wanted
            ? `none of ${wanted.join(', ')} is in the bundle`
            : `nothing in the bundle runs on ${platform}`,
        });
      for (const { image } of chosen) await source.prepare(image, { signal });
      const stream = writeDockerArchive(source, chosen, { os, architecture, variant }, signal);
      stream.once('close', () => void source[Symbol.asyncDispose]());
      return stream;
    } catch (error) {
      await source[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Whether a bundle lies in this upload. */
  async hasUpload(uploadId: string): Promise<boolean> {
    return (await this.bundles.countBy({ uploadId })) > 0;
  }

  /**
   * Removes unpacked bundles and unfinished files of workers that were killed, and compressed layers that nobody asked
   * for in a month. Returns how many.
   */
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

  /**
   * Forgets compressed layers that the registry has no more: they may be second names of files whose space a garbage
   * collection gives back. Idempotent; nothing may read bundles meanwhile. A registry of others shares no files with us.
   * Throws `registry_storage_changed`: of another disk nobody knows what it lacks.
   */
  async forgetLayers(): Promise<void> {
    const { repairs: storage } = await this.catalogue.registryToRead();
    if (storage) await layerCacheIn(this.workDir).forget(async (blob) => !(await storage.hasBlob(blob)));
  }

  private async toResource(row: BundleEntity, state: JobState): Promise<Bundle> {
    const isOver = state === 'failed' || state === 'cancelled';
    const images = row.images ?? [];
    const { names } = await this.names.assign(images);
    return {
      ...row,
      lists: row.lists ?? [],
      unusable: row.unusable ?? [],
      path: row.uploadId ? null : row.path,
      sizeBytes: Number(row.sizeBytes),
      state: row.images ? 'ready' : isOver ? 'invalid' : 'reading',
      images: images.map((image, index) => ({
        ...image,
        zstdPlatforms: image.zstdPlatforms ?? [],
        localReferences: (names[index] ?? []).map(({ full }) => full),
      })),
    };
  }
}

/** Docker refuses to give an image a name with a digest. */
const taggedOf = (names: readonly string[]) => names.filter((name) => !name.includes('@'));

async function openParts(path: string): Promise<JoinedFile> {
  if ((await stat(path)).isDirectory()) throw new AppError('request_invalid', { detail: 'a folder has no sha256' });
  return JoinedFile.open(await findParts(path));
}

/** Size and time of change, of all parts of a file that was split. */
async function fingerprintOf(path: string): Promise<{ size: number; fingerprint: string; isAllowed: boolean }> {
  const first = await stat(path);
  const infos = first.isFile()
    ? await Promise.all((await findParts(path)).map((part) => statRegularFile(part)))
    : [first];
  return {
    size: infos.reduce((sum, { size }) => sum + size, 0),
    fingerprint: infos.map(({ size, mtimeMs, ino }) => `${size}-${mtimeMs}-${ino}`).join(','),
    isAllowed: first.isFile() || first.isDirectory(),
  };
}
