import { AppError } from '../errors.js';
import { type Digest, isDigest } from './digest.js';

/**
 * An image's name in full: `registry/repository:tag` or `registry/repository@digest`.
 * Grammar: https://github.com/distribution/reference/blob/main/reference.go
 */
export interface Reference {
  /** `host[:port]`, e.g. `k8s.gcr.io` or `localhost:5100`. Docker Hub is `docker.io`. */
  registry: string;
  /** Path below the registry, e.g. `library/nginx`. */
  repository: string;
  tag?: string | undefined;
  digest?: Digest | undefined;
}

const registryPattern =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?$/;
const repositoryPattern = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;

/** More than the longest host, path, tag and digest together. */
const maxLength = 1000;

/** True for `host[:port]`, as a registry stands in references: no scheme, no path. */
export const isRegistry = (text: string): boolean =>
  text.length <= 255 && registryPattern.test(text) && (!text.startsWith('[') || URL.canParse(`http://${text}`));
/** Whether a text is the name of a repository, without registry. */
export const isRepository = (text: string): boolean => text.length <= 255 && repositoryPattern.test(text);
/** Whether a text is a tag. */
export const isTag = (text: string): boolean => tagPattern.test(text);

/** An IPv6 address in its shortest form, e.g. `[fd00::10]:5000`; anything else as it is. */
const canonicalRegistry = (registry: string): string =>
  registry.replace(/^\[.+\]/, (address) => new URL(`http://${address}`).hostname);

/**
 * Reads a reference the way Docker does: without a registry it is Docker Hub's, a one-word Docker Hub name is in
 * `library/`, and without tag or digest the tag is `latest`. Throws `reference_invalid`.
 */
export function parseReference(text: string): Reference {
  const invalid = (detail: string) => new AppError('reference_invalid', { detail, reference: text.slice(0, 300) });
  if (text.length > maxLength) throw invalid('it is too long');
  let rest = text;
  let digest: Digest | undefined;
  const at = rest.indexOf('@');
  if (at >= 0) {
    const value = rest.slice(at + 1);
    if (!isDigest(value)) throw invalid('the digest is not sha256: and 64 hex digits');
    digest = value;
    rest = rest.slice(0, at);
  }
  const slash = rest.indexOf('/');
  const first = slash < 0 ? '' : rest.slice(0, slash);
  const hasRegistry = first !== '' && (/[.:]/.test(first) || first === 'localhost' || first.startsWith('['));
  let registry = hasRegistry ? first : 'docker.io';
  let repository = hasRegistry ? rest.slice(slash + 1) : rest;
  let tag: string | undefined;
  const colon = repository.lastIndexOf(':');
  if (colon > repository.lastIndexOf('/')) {
    tag = repository.slice(colon + 1);
    repository = repository.slice(0, colon);
    if (!isTag(tag)) throw invalid('the tag has characters that tags cannot have');
  }
  if (registry === 'index.docker.io' || registry === 'registry-1.docker.io') registry = 'docker.io';
  if (registry === 'docker.io' && repository !== '' && !repository.includes('/')) repository = `library/${repository}`;
  if (!isRegistry(registry)) throw invalid('the registry is not host[:port]');
  registry = canonicalRegistry(registry);
  if (!isRepository(repository)) throw invalid('the path has characters that paths cannot have');
  if (!tag && !digest) tag = 'latest';
  return { registry, repository, tag, digest };
}

/** The full text of a reference; `parseReference` reads it back to the same value. */
export function formatReference({ registry, repository, tag, digest }: Reference): string {
  return `${registry}/${repository}${tag ? `:${tag}` : ''}${digest ? `@${digest}` : ''}`;
}

/** The reference text without a digest that stands beside a tag: what such an image is listed under. */
export function withoutDigest(text: string): string {
  const reference = parseReference(text);
  return formatReference(reference.tag ? { ...reference, digest: undefined } : reference);
}

/** The name inside one registry: `repository:tag`, or `repository@digest` of what has no tag. */
export const formatName = ({ repository, tag, digest }: Pick<Reference, 'repository' | 'tag' | 'digest'>): string =>
  tag === undefined ? `${repository}@${digest}` : `${repository}:${tag}`;

/** Reads what `formatName` writes. A path has neither `:` nor `@`. */
export function parseName(name: string): Pick<Reference, 'repository' | 'tag'> {
  const [, repository = '', tag] = /^([^:@]*)(?::([^@]*))?/.exec(name) ?? [];
  return { repository, tag };
}

/**
 * The kinds of names that an upstream image gets in the local registry, in the order of their importance:
 * - `flat`: only the registry's host replaced, as PMK does: `localhost:5100/pause:3.2`
 * - `upstream`: below its upstream, for containerd mirrors with `override_path`: `localhost:5100/k8s.gcr.io/pause:3.2`
 */
export const nameKinds = ['flat', 'upstream'] as const;
/** One of the kinds of local names. */
export type NameKind = (typeof nameKinds)[number];

/**
 * The names that an upstream image gets in the local registry, the one that PMK uses first. Official Docker Hub images
 * have both `nginx` and `library/nginx` as flat names. The first is where the bytes go; the others are mounts. An
 * upstream's port is written with `_`, and an IPv6 address as `ipv6-fd00-0-0-0-0-0-0-10`, since `:` cannot stand in a
 * path.
 */
export function localReferences(
  upstream: Reference,
  localRegistry: string,
  kinds: readonly NameKind[] = nameKinds,
): Reference[] {
  const { registry, repository, tag, digest } = upstream;
  const official =
    registry === 'docker.io' && repository.startsWith('library/') ? [repository.slice('library/'.length)] : [];
  const paths = { flat: [...official, repository], upstream: [`${pathOfRegistry(registry)}/${repository}`] };
  return nameKinds
    .flatMap((kind) => (kinds.includes(kind) ? paths[kind] : []))
    .map((path) => ({ registry: localRegistry, repository: path, tag, digest }));
}

function pathOfRegistry(registry: string): string {
  const [, address, port = ''] = /^\[(.+)\](?::(\d+))?$/.exec(registry.toLowerCase()) ?? [];
  if (address === undefined) return registry.toLowerCase().replaceAll(':', '_');
  const [before = [], after] = address.split('::').map((half) => half.split(':').filter((group) => group !== ''));
  const groups =
    after === undefined ? before : [...before, ...Array<string>(8 - before.length - after.length).fill('0'), ...after];
  return `ipv6-${groups.map((group) => Number.parseInt(group, 16).toString(16)).join('-')}${port && `_${port}`}`;
}

/**
 * The upstream whose name below its upstream this is: `k8s.gcr.io/pause` → `k8s.gcr.io`, `pause`. Undefined for a flat
 * name.
 */
export function upstreamOf({
  repository,
  tag,
  digest,
}: Pick<Reference, 'repository' | 'tag' | 'digest'>): Reference | undefined {
  const slash = repository.indexOf('/');
  const registry = repository
    .slice(0, Math.max(slash, 0))
    .replace(/_(\d+)$/, ':$1')
    .replace(/^ipv6-([\da-f]{1,4}(?:-[\da-f]{1,4}){7})(?=:|$)/, (_, groups: string) =>
      canonicalRegistry(`[${groups.replaceAll('-', ':')}]`),
    );
  if (!/[.:]/.test(registry) && registry !== 'localhost') return undefined;
  return { registry, repository: repository.slice(slash + 1), tag, digest };
}
