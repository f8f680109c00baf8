import { AppError } from '@airdock/core/errors';
import { type Digest, isDigest } from '@airdock/core/oci/digest';
import { parseReference } from '@airdock/core/oci/reference';
import { selectImages } from '@airdock/core/oci/select-images';
import { createPooledDigest } from '@airdock/disk/files/hash-pool';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { lookUp } from '@airdock/oci/registry-client/retry';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState, withState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import type { RequiredRegistry } from '@airdock/registry/access/require-registry';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import pLimit from 'p-limit';
import type { Repository } from 'typeorm';
import { type CatalogueImage, ImageService } from '../image/image.service.js';
import { VerificationEntity } from './verification.entity.js';
import type { CreateVerification, Verification, VerificationProblem } from './verification.schema.js';

export const verifyJobType = 'image.verify';
const readsAtOnce = 4;
const linksAtOnce = 16;

/** Whether the registry still holds what was pushed, bit by bit. */
@Injectable()
export class VerificationService {
  constructor(
    @InjectRepository(VerificationEntity, 'image') private readonly verifications: Repository<VerificationEntity>,
    private readonly images: ImageService,
    private readonly jobs: JobsService,
  ) {}

  /** Throws `image_not_found`, `registry_off`. */
  async create(request: JobRequest, { images, quarantine }: CreateVerification): Promise<Job> {
    selectImages(await this.images.all(), images);
    await this.images.registry();
    const id = newId();
    const row = columns<VerificationEntity>({
      id,
      images: images ?? null,
      quarantine,
      problems: null,
      jobId: request.id,
      createdAt: now(),
    });
    return this.jobs.submit({ ...request, type: verifyJobType, resource: `/v1/verifications/${id}` }, [
      this.verifications.createQueryBuilder().insert().values(row),
    ]);
  }

  list(query: PageQuery): Promise<Page<Verification>> {
    return findPageWithState(this.verifications, this.jobs, query, withState);
  }

  get(id: string): Promise<Verification> {
    return getWithState(this.verifications, this.jobs, id, withState);
  }

  /**
   * Each digest is read once, whatever number of images it is in. Throws `images_damaged` when something was found,
   * `registry_storage_changed` when that is because of the disk.
   */
  @RunsJob(verifyJobType)
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const { resourceId, signal } = context;
    const row = await getRow(this.verifications, resourceId);
    const target = await this.images.registryForJob(context, 'look');
    const images = selectImages(await this.images.all(), row.images ?? undefined);
    await using registry = new RegistryClient(target.address);
    const parts = partsOf(images);
    const found = await this.readParts(registry, target, parts, row, context);
    const problems: VerificationProblem[] = [];
    for (const image of images) {
      const readable = { ...image, parts: image.parts.filter(({ digest }) => !found.has(digest)) };
      problems.push(
        ...(await this.namesOf(registry, image, signal)),
        ...(await this.linksOf(registry, target, readable, signal)),
      );
      for (const { digest } of image.parts) {
        const problem = found.get(digest);
        if (problem) problems.push({ upstream: image.upstream, ...problem });
      }
    }
    await this.verifications.update({ id: row.id }, columns<VerificationEntity>({ problems }));
    if (problems.length > 0) {
      // Of a disk that is not there everything is missing, and no push would mend it.
      await this.images.assertStorage();
      const damaged = [...new Set(problems.map(({ upstream }) => upstream))];
      throw new AppError('images_damaged', {
        detail: `${damaged.length} of ${images.length} images: ${damaged.slice(0, 5).join(', ')}`,
        images: damaged.slice(0, 100),
      });
    }
    return { images: images.length, parts: parts.size, bytes: sizeOf(parts) };
  }

  /** What is wrong with the bytes of the parts. What is damaged is set aside where that was asked for. */
  private async readParts(
    registry: RegistryClient,
    target: RequiredRegistry,
    parts: ReadonlyMap<Digest, PartToRead>,
    { quarantine }: VerificationEntity,
    { signal, progress }: JobContext,
  ): Promise<Map<Digest, Omit<VerificationProblem, 'upstream'>>> {
    const limit = pLimit(readsAtOnce);
    const [bytesTotal, itemsTotal] = [sizeOf(parts), parts.size];
    let bytesDone = 0;
    let itemsDone = 0;
    const found = new Map<Digest, Omit<VerificationProblem, 'upstream'>>();
    const read = async ({ digest, size, repository }: PartToRead) => {
      signal.throwIfAborted();
      const actual = await this.digestOf(registry, target, repository, digest, signal, (bytes) => {
        bytesDone += bytes;
        progress({ phase: 'read', bytesDone: Math.min(bytesDone, bytesTotal), bytesTotal, itemsDone, itemsTotal });
      });
      itemsDone += 1;
      if (actual === digest) return;
      const kind = actual ? 'part_damaged' : 'part_missing';
      found.set(digest, { kind, subject: digest, actual: actual ?? null });
      if (actual && quarantine) await target.repairs?.setAside({ digest, size });
    };
    await Promise.all([...parts.values()].map((part) => limit(() => read(part))));
    return found;
  }

  /**
   * Of the bytes that the registry has for a digest now, read in its folder where that is ours to see; undefined when
   * it has none.
   */
  private async digestOf(
    registry: RegistryClient,
    { repairs }: RequiredRegistry,
    repository: string,
    digest: Digest,
    signal: AbortSignal,
    onBytes: (count: number) => void,
  ): Promise<Digest | undefined> {
    if (repairs) return repairs.digestOf(digest, { signal, onBytes });
    const actual = createPooledDigest();
    try {
      const content = await lookUp(() => registry.getBlob(repository, digest, { signal }), signal);
      for await (const chunk of content ?? []) {
        await actual.update(chunk as Buffer);
        onBytes((chunk as Buffer).byteLength);
      }
    } catch (error) {
      if (error instanceof AppError && error.code === 'image_not_found')
        return this.manifestDigest(registry, repository, digest, signal);
      throw error;
    }
    return actual.value();
  }

  /** Registries do not serve manifests as blobs. */
  private async manifestDigest(
    registry: RegistryClient,
    repository: string,
    digest: Digest,
    signal: AbortSignal,
  ): Promise<Digest | undefined> {
    try {
      return (await lookUp(() => registry.getManifest(repository, digest, { signal }), signal))?.digest;
    } catch (error) {
      if (error instanceof AppError && error.code === 'digest_mismatch' && isDigest(error.details.actual))
        return error.details.actual;
      throw error;
    }
  }

  /** What a repository of an image does not give, though the bytes lie there: a link that is damaged or gone. */
  private async linksOf(
    registry: RegistryClient,
    { repairs }: RequiredRegistry,
    { upstream, parts, localReferences }: CatalogueImage,
    signal: AbortSignal,
  ): Promise<VerificationProblem[]> {
    const problems: VerificationProblem[] = [];
    const limit = pLimit(linksAtOnce);
    const isManifest = async (repository: string, digest: Digest) =>
      (await repairs?.resolve(repository, digest)) !== undefined ||
      (await lookUp(() => registry.headManifest(repository, digest, { signal }), signal)) !== undefined;
    const isBlob = async (repository: string, digest: Digest) =>
      repairs
        ? repairs.isLinked(repository, digest)
        : (await lookUp(() => registry.headBlob(repository, digest, { signal }), signal)) !== undefined;
    for (const repository of new Set(localReferences.map((reference) => parseReference(reference).repository)))
      await Promise.all(
        parts.map(({ digest, kind }) =>
          limit(async () => {
            const isThere =
              (kind !== 'manifest' && (await isBlob(repository, digest))) ||
              (kind !== 'layer' && (await isManifest(repository, digest)));
            if (!isThere)
              problems.push({ upstream, kind: 'part_missing', subject: `${repository}@${digest}`, actual: null });
          }),
        ),
      );
    return problems;
  }

  private async namesOf(
    registry: RegistryClient,
    { upstream, digest, localReferences }: CatalogueImage,
    signal: AbortSignal,
  ): Promise<VerificationProblem[]> {
    const problems: VerificationProblem[] = [];
    for (const reference of localReferences) {
      const { repository, tag } = parseReference(reference);
      const found = await lookUp(() => registry.headManifest(repository, tag ?? digest, { signal }), signal);
      if (found?.digest === digest) continue;
      problems.push({
        upstream,
        kind: found ? 'name_changed' : 'name_missing',
        subject: reference,
        actual: found?.digest ?? null,
      });
    }
    return problems;
  }
}

interface PartToRead {
  digest: Digest;
  size: number;
  repository: string;
}

/** Each part once, whatever number of images it is in. */
const partsOf = (images: readonly CatalogueImage[]): Map<Digest, PartToRead> =>
  new Map(
    images.flatMap(({ parts, localReferences, upstream }) => {
      const { repository } = parseReference(localReferences[0] ?? upstream);
      return parts.map(({ digest, size }) => [digest, { digest, size, repository }]);
    }),
  );

const sizeOf = (parts: ReadonlyMap<Digest, PartToRead>): number =>
  [...parts.values()].reduce((sum, { size }) => sum + size, 0);
