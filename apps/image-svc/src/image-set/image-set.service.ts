import { AppError } from '@airdock/core/errors';
import { parseKubernetesVersion } from '@airdock/core/kubernetes-version';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { isUniqueViolation, now } from '@airdock/platform/database';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BundleService } from '../bundle/bundle.service.js';
import { ImageService } from '../image/image.service.js';
import { ImageSetEntity } from './image-set.entity.js';
import type { CreateImageSet, ImageSet, ImageSetListQuery, MissingImages } from './image-set.schema.js';

/** Which images something needs: a Kubernetes version, or an add-on. Lists are the site's data, never code. */
@Injectable()
export class ImageSetService {
  constructor(
    @InjectRepository(ImageSetEntity, 'image') private readonly imageSets: Repository<ImageSetEntity>,
    private readonly images: ImageService,
    private readonly bundles: BundleService,
  ) {}

  /** Throws `bundle_not_ready`, `image_list_unclear`, `reference_invalid`, `kubernetes_version_unsupported`, `resource_exists`. */
  async create({ name, kubernetesVersion, images, bundleId, list }: CreateImageSet): Promise<ImageSet> {
    if (kubernetesVersion !== undefined) parseKubernetesVersion(kubernetesVersion);
    const wanted = images ?? (await this.bundles.listOf(bundleId ?? '', list));
    const references = [...new Set(wanted.map((text) => formatReference(parseReference(text))))];
    const row: ImageSetEntity = { id: newId(), name, kubernetesVersion: kubernetesVersion ?? null, images: references, createdAt: now() };
    try {
      await this.imageSets.insert(row);
    } catch (error) {
      if (isUniqueViolation(error)) throw new AppError('resource_exists', { detail: `an image set named ${name}` });
      throw error;
    }
    return row;
  }

  list({ kubernetesVersion, name, ...query }: ImageSetListQuery): Promise<Page<ImageSet>> {
    return findPage(this.imageSets, query, { ...(kubernetesVersion ? { kubernetesVersion } : {}), ...(name ? { name } : {}) });
  }

  get(id: string): Promise<ImageSet> {
    return getRow(this.imageSets, id);
  }

  async remove(id: string): Promise<void> {
    await getRow(this.imageSets, id);
    await this.imageSets.delete({ id });
  }

  async missing(id: string): Promise<MissingImages> {
    const { images } = await getRow(this.imageSets, id);
    return { missing: await this.images.missing(images) };
  }
}
