import { everyPage } from '@airdock/clients/every-page';
import { listClusters } from '@airdock/clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import { parseKubernetesVersion } from '@airdock/core/kubernetes-version';
import { formatReference, parseReference, withoutDigest } from '@airdock/core/oci/reference';
import { isUniqueViolation, now } from '@airdock/platform/database';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BundleService } from '../bundle/bundle.service.js';
import type { ImageUsers } from '../image/image.schema.js';
import { ImageService } from '../image/image.service.js';
import type { ImageUsersService } from '../image/image-users.service.js';
import { ImageSetEntity } from './image-set.entity.js';
import type {
  CreateImageSet,
  DeleteImageSetQuery,
  ImageSet,
  ImageSetListQuery,
  MissingImages,
} from './image-set.schema.js';

/** Which images something needs: a Kubernetes version, or an add-on. Lists are the site's data, never code. */
@Injectable()
export class ImageSetService implements ImageUsersService {
  constructor(
    @InjectRepository(ImageSetEntity, 'image') private readonly imageSets: Repository<ImageSetEntity>,
    private readonly images: ImageService,
    private readonly bundles: BundleService,
    private readonly clients: ServiceClients,
  ) {}

  /**
   * Throws `bundle_not_ready`, `image_list_unclear`, `reference_invalid`, `kubernetes_version_unsupported`,
   * `resource_exists`.
   */
  async create({ name, kubernetesVersion, images, bundleId, list }: CreateImageSet): Promise<ImageSet> {
    if (kubernetesVersion !== undefined) parseKubernetesVersion(kubernetesVersion);
    const wanted = images ?? (await this.bundles.listOf(bundleId ?? '', list));
    const references = [...new Set(wanted.map((text) => formatReference(parseReference(text))))];
    const row: ImageSetEntity = {
      id: newId(),
      name,
      kubernetesVersion: kubernetesVersion ?? null,
      images: references,
      createdAt: now(),
    };
    try {
      await this.imageSets.insert(row);
    } catch (error) {
      if (isUniqueViolation(error)) throw new AppError('resource_exists', { detail: `an image set named ${name}` });
      throw error;
    }
    return row;
  }

  list({ kubernetesVersion, name, ...query }: ImageSetListQuery): Promise<Page<ImageSet>> {
    return findPage(this.imageSets, query, {
      ...(kubernetesVersion ? { kubernetesVersion } : {}),
      ...(name ? { name } : {}),
    });
  }

  get(id: string): Promise<ImageSet> {
    return getRow(this.imageSets, id);
  }

  /** Throws `resource_in_use` with the names of the clusters that need it, unless `force`. */
  async remove(id: string, { force }: DeleteImageSetQuery): Promise<void> {
    const { name } = await getRow(this.imageSets, id);
    const clusters = force ? [] : await this.clustersOf([id]);
    if (clusters.length > 0)
      throw new AppError('resource_in_use', {
        detail: `${name}: clusters ${clusters.map((cluster) => cluster.name).join(', ')} need it`,
        clusters,
      });
    await this.imageSets.delete({ id });
  }

  /**
   * What the registry has of a set now, and which bundles contain the images. Throws `registry_off`,
   * `registry_unavailable`.
   */
  async missing(id: string): Promise<MissingImages> {
    const { images: upstreams } = await getRow(this.imageSets, id);
    const [states, bundles] = await Promise.all([this.images.states(upstreams), this.bundles.containing(upstreams)]);
    const images = states.map((state) => ({ ...state, bundles: bundles.get(state.upstream) ?? [] }));
    return { missing: images.filter(({ state }) => state !== 'present').map(({ upstream }) => upstream), images };
  }

  async usersOf(upstreams: readonly string[]): Promise<ImageUsers> {
    const names = new Set(upstreams);
    const sets = (await this.imageSets.find()).filter(({ images }) =>
      images.some((image) => names.has(image) || names.has(withoutDigest(image))),
    );
    return {
      imageSets: sets.map(({ id, name }) => ({ id, name })),
      clusters: await this.clustersOf(sets.map(({ id }) => id)),
    };
  }

  private async clustersOf(imageSetIds: readonly string[]): Promise<ImageUsers['clusters']> {
    const found = new Map<string, string>();
    const client = this.clients.cluster;
    for (const imageSetId of imageSetIds)
      for await (const { id, name } of everyPage((page) =>
        listClusters({ client, query: { imageSetId, ...page }, throwOnError: true }),
      ))
        found.set(id, name);
    return [...found].map(([id, name]) => ({ id, name }));
  }
}
