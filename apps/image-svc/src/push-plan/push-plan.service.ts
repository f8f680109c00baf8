import { AppError } from '@airdock/core/errors';
import { formatPlatform } from '@airdock/core/oci/manifest';
import { freeBytesOf } from '@airdock/disk/files/durable-file';
import type { ImageSource, SourceImage } from '@airdock/oci/image/image-source';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { CONFIG, type Config } from '@airdock/platform/config';
import { now } from '@airdock/platform/database';
import type { RequiredRegistry } from '@airdock/registry/access/require-registry';
import { planCopy } from '@airdock/registry/copy/plan-copy';
import { Inject, Injectable } from '@nestjs/common';
import { ImageService } from '../image/image.service.js';
import { type LocalName, LocalNamesService, type NamingRule } from '../image/local-names.service.js';
import { toSeenImage } from '../image/seen-image.schema.js';
import type { PushPlan } from './push-plan.schema.js';

/** Which images go where, under which names. */
export interface PushTask {
  source: ImageSource;
  images: SourceImage[];
  rule: NamingRule;
  target: RequiredRegistry;
  registry: RegistryClient;
}

/** What a push would do: compares images with the registry, and writes nothing. */
@Injectable()
export class PushPlanService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly images: ImageService,
    private readonly names: LocalNamesService,
  ) {}

  /** What a push of the whole bundle would do now; undefined while the registry is off. */
  async preview(source: ImageSource, signal: AbortSignal): Promise<PushPlan | undefined> {
    try {
      const target = await this.images.registry();
      await using registry = new RegistryClient(target.address);
      return await this.plan({ source, images: [...source.images], rule: {}, target, registry }, signal);
    } catch (error) {
      // The bundle is what it is, also while there is nothing to compare it with.
      if (error instanceof AppError && /^registry_|^dependency_/.test(error.code)) return undefined;
      throw error;
    }
  }

  async plan({ source, images, rule, target, registry }: PushTask, signal: AbortSignal): Promise<PushPlan> {
    const { names, collisions } = await this.names.assign(images.map(toSeenImage), rule);
    const toCopy = images.map((image, index) => ({ image, names: names[index] as LocalName[] }));
    const planned = await planCopy({
      source,
      images: toCopy,
      registry,
      storage: target.storage,
      repairs: target.repairs,
      signal,
    });
    const freeBytes = target.storageDir === null ? null : await this.freeBytes(target.storageDir);
    return {
      images: images.map(({ names: upstreams, platforms, sizeBytes }, index) => ({
        names: upstreams,
        platforms: platforms.map(formatPlatform),
        sizeBytes,
        localReferences: (names[index] as LocalName[]).map(({ full }) => full),
        state: planned.images[index]?.state ?? 'missing',
        digest: planned.images[index]?.digest ?? null,
        missingBytes: planned.images[index]?.missingBytes ?? 0,
      })),
      collisions,
      missingBytes: planned.missingBytes,
      freeBytes,
      fits: freeBytes === null ? null : planned.missingBytes <= freeBytes,
      comparedAt: now(),
    };
  }

  /** Bytes that pushes may write: what the disk of the folder has, less what is to stay free. */
  async freeBytes(folder: string): Promise<number> {
    return Math.max(0, (await freeBytesOf(folder)) - this.config.registry.minFreeBytes);
  }
}
