import { type Digest, isDigest } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { formatReference, parseReference } from '@airdock/core/oci/reference';

/**
 * Names for images that have none in their bundle: full references by digest of the manifest, image ID, or the bare tag
 * that the bundle has for it.
 */
export type GivenNames = Readonly<Record<string, string | readonly string[]>>;

/**
 * The full name that a tool wrote beside an image. containerd, Docker and Hauler write `io.containerd.image.name`;
 * skopeo, crane, Zarf and others put what they were given into `ref.name`, which is a tag only when it has neither `/`
 * nor `:`. containerd keeps images of Kubernetes a second time under their ID, which is no name.
 */
export function annotatedName({ annotations }: Descriptor): string | undefined {
  const refName = bareName({ annotations });
  const name = annotations?.['io.containerd.image.name'] ?? (refName && /[/:]/.test(refName) ? refName : undefined);
  return name === undefined || isDigest(name) ? undefined : formatReference(parseReference(name));
}

/** `ref.name` as it is. */
export const bareName = ({ annotations }: Pick<Descriptor, 'annotations'>): string | undefined =>
  annotations?.['org.opencontainers.image.ref.name'];

/** What was given for the first key that has something. Throws `reference_invalid`. */
export function givenNames(given: GivenNames, keys: readonly (string | undefined)[]): string[] {
  const key = keys.find((candidate) => candidate !== undefined && Object.hasOwn(given, candidate)) ?? '';
  return [given[key] ?? []].flat().map((name) => formatReference(parseReference(name)));
}

/**
 * How the tag of a signature, attestation or SBOM begins with the digest that it speaks of. Source:
 * https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
 */
export function companionSubject(tag: string | undefined): Digest | undefined {
  const [, hex] = /^sha256-([0-9a-f]{64})(?:\.[a-z]+)?$/.exec(tag ?? '') ?? [];
  const digest = `sha256:${hex}`;
  return isDigest(digest) ? digest : undefined;
}

/** Of cosign's and Hauler's layouts, which give a signature the name of its image and say in `kind` what it is. */
export function companionKind({ annotations }: Descriptor): 'sig' | 'att' | 'sbom' | undefined {
  const [, kind] = /^dev\.(?:cosignproject\.cosign|hauler)\/(sig|att|sbom)s$/.exec(annotations?.kind ?? '') ?? [];
  return kind as 'sig' | 'att' | 'sbom' | undefined;
}

/** `sha256-<hex>.sig`, or the tag of the referrers list without a kind. */
export const companionTag = (subject: Digest, kind?: 'sig' | 'att' | 'sbom'): string =>
  `${subject.replace(':', '-')}${kind ? `.${kind}` : ''}`;
