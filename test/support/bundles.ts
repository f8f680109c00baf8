import { join } from 'node:path';
import { createBundle, createPush } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { buildDockerArchive, buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { resourceId, success } from './jobs.js';

export interface LargeBundle {
  /** Folder that bundles may be registered from. */
  dir: string;
  /** Also the name of its images: `k8s.gcr.io/<name>-0:v1` and so on. */
  name: string;
  /** Images, each with one layer of its own that does not compress. Default 8. */
  images?: number;
  /** Default 24 MB. A push has to take long enough to be disturbed in the middle. */
  layerBytes?: number;
  /** `docker` layers are compressed by the push, which takes longest; `oci` is the default. */
  format?: 'docker' | 'oci';
}

/** Writes a bundle that takes seconds to push. Returns its file. */
export async function writeLargeBundle({
  dir,
  name,
  images: count = 8,
  layerBytes = 24_000_000,
  format = 'oci',
}: LargeBundle): Promise<string> {
  const images = [];
  for (let index = 0; index < count; index++)
    images.push(
      await makeImage({
        name: `k8s.gcr.io/${name}-${index}:v1`,
        layers: [{ randomBytes: layerBytes, seed: `${name} ${index}` }],
      }),
    );
  const file = join(dir, `${name}.tar`);
  await (format === 'docker' ? buildDockerArchive(file, images) : buildOciArchive(file, images));
  return file;
}

/** Registers a file and waits until it has been read. Returns the bundle's id. */
export async function register(client: Client, file: string): Promise<string> {
  return resourceId(await success(client, createBundle({ client, body: { path: file }, throwOnError: true })));
}

export interface CarriedBundle {
  /** Of the file; default `images`. */
  name?: string;
  /** Upstream names; each image has one layer of its own that does not compress. */
  images: readonly string[];
  /** Default 100 kB. */
  layerBytes?: number;
}

/** Puts a docker-archive where the DU takes bundles from, and registers it. Returns the bundle's id. */
export async function carryIn(
  client: Client,
  { bundleDir }: { bundleDir: string },
  { name = 'images', images, layerBytes = 100_000 }: CarriedBundle,
): Promise<string> {
  const file = join(bundleDir, `${name}.tar`);
  await buildDockerArchive(
    file,
    await Promise.all(
      images.map((image) => makeImage({ name: image, layers: [{ randomBytes: layerBytes, seed: image }] })),
    ),
  );
  return register(client, file);
}

/** Pushes all of a bundle, and waits for the end, which must be a success. */
export async function push(client: Client, bundleId: string): Promise<void> {
  await success(client, createPush({ client, body: { bundleId }, throwOnError: true }));
}
