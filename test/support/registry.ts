import { getBundle } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';

const manifestTypes =
  'application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json';

/** Digest of `repository:tag` in the registry on this port, or undefined. */
export async function digestAt(port: number, name: string): Promise<string | undefined> {
  const [repository, tag] = [name.slice(0, name.lastIndexOf(':')), name.slice(name.lastIndexOf(':') + 1)];
  const response = await fetch(`http://localhost:${port}/v2/${repository}/manifests/${tag}`, {
    method: 'HEAD',
    headers: { accept: manifestTypes },
  });
  return response.ok ? (response.headers.get('docker-content-digest') ?? undefined) : undefined;
}

/** All `repository:tag` that the registry shows. A repository without a tag is shown as its name alone. */
export async function namesAt(port: number): Promise<string[]> {
  const get = async <T>(path: string): Promise<T> =>
    (await (await fetch(`http://localhost:${port}/v2/${path}`)).json()) as T;
  const { repositories } = await get<{ repositories: string[] }>('_catalog?n=1000');
  const names = await Promise.all(
    repositories.map(async (repository) => {
      const { tags } = await get<{ tags?: string[] | null }>(`${repository}/tags/list`);
      return tags?.length ? tags.map((tag) => `${repository}:${tag}`) : [repository];
    }),
  );
  return names.flat().sort();
}

/** A reference without the registry's own address. */
export const nameOf = (reference: string): string => reference.slice(reference.indexOf('/') + 1);

/**
 * What is wrong with the images of a bundle in the registry: names that are missing or have another digest than the
 * bundle says. An image of a docker-archive gets its digest by the push; there all names of an image must agree. Every
 * blob must be there as well.
 */
export async function missingOf(client: Client, port: number, bundleId: string): Promise<string[]> {
  const { data: bundle } = await getBundle({ client, path: { id: bundleId }, throwOnError: true });
  const problems: string[] = [];
  for (const { digest, localReferences } of bundle.images) {
    const found = await Promise.all(localReferences.map((reference) => digestAt(port, nameOf(reference))));
    const wanted = digest ?? found[0];
    for (const [index, reference] of localReferences.entries()) {
      if (!found[index] || found[index] !== wanted) problems.push(`${reference}: ${found[index]} instead of ${wanted}`);
      else problems.push(...(await missingBlobs(port, nameOf(reference))));
    }
  }
  return problems;
}

async function missingBlobs(port: number, name: string): Promise<string[]> {
  const [repository, tag] = [name.slice(0, name.lastIndexOf(':')), name.slice(name.lastIndexOf(':') + 1)];
  const base = `http://localhost:${port}/v2/${repository}`;
  const response = await fetch(`${base}/manifests/${tag}`, { headers: { accept: manifestTypes } });
  const { config, layers = [] } = (await response.json()) as {
    config?: { digest: string };
    layers?: { digest: string }[];
  };
  const blobs = [...(config ? [config] : []), ...layers];
  const there = await Promise.all(blobs.map(({ digest }) => fetch(`${base}/blobs/${digest}`, { method: 'HEAD' })));
  return blobs.filter((_, index) => !there[index]?.ok).map(({ digest }) => `${name}: no blob ${digest}`);
}
