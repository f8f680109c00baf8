import { digestOf } from '@airdock/core/oci/digest';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { annotatedName, companionKind, companionSubject, companionTag, givenNames } from './image-names.js';

const digest = digestOf('image');
const refName = 'org.opencontainers.image.ref.name';
const withAnnotations = (annotations?: Record<string, string>) => ({
  mediaType: 'application/vnd.oci.image.manifest.v1+json',
  digest,
  size: 1,
  ...(annotations && { annotations }),
});

it.each([
  [{ 'io.containerd.image.name': 'docker.io/library/nginx:1.21', [refName]: '1.21' }, 'docker.io/library/nginx:1.21'],
  [{ [refName]: 'quay.io/a/b:1' }, 'quay.io/a/b:1'],
  [{ [refName]: 'nginx:1.21' }, 'docker.io/library/nginx:1.21'],
  [{ [refName]: 'library/nginx' }, 'docker.io/library/nginx:latest'],
  [{ [refName]: '1.21' }, undefined],
  [{ 'io.containerd.image.name': digest }, undefined],
  [{}, undefined],
  [undefined, undefined],
])('is called %j: %s', (annotations, name) => expect(annotatedName(withAnnotations(annotations))).toBe(name));

it('refuses a name that is none, whoever wrote it', () => {
  for (const name of ['UPPER/case:1', 'a b:1', 'quay.io/a:'])
    expect(() => annotatedName(withAnnotations({ [refName]: name }))).toThrow(
      expect.objectContaining({ code: 'reference_invalid' }),
    );
  expect(() => givenNames({ '1': 'UPPER/case' }, ['1'])).toThrow(
    expect.objectContaining({ code: 'reference_invalid' }),
  );
});

it('gives an image the names of the first key that somebody has named, and none by chance', () => {
  const given = { [digest]: ['quay.io/a/b:1', 'b:2'], '1.21': 'nginx:1.21' };
  expect(givenNames(given, [undefined, digest, '1.21'])).toEqual(['quay.io/a/b:1', 'docker.io/library/b:2']);
  expect(givenNames(given, ['other', '1.21'])).toEqual(['docker.io/library/nginx:1.21']);
  expect(givenNames(given, ['toString', 'constructor', undefined])).toEqual([]);
});

it('finds in the tag of a companion the image that it was made for', () => {
  const kinds = fc.constantFrom(undefined, 'sig' as const, 'att' as const, 'sbom' as const);
  fc.assert(
    fc.property(fc.string(), kinds, (text, kind) => {
      expect(companionSubject(companionTag(digestOf(text), kind))).toBe(digestOf(text));
    }),
  );
  const hex = digest.slice('sha256:'.length);
  for (const tag of [undefined, '', 'v1', `sha256-${hex.slice(1)}.sig`, `sha256-${hex}.SIG`, `x-sha256-${hex}`, digest])
    expect(companionSubject(tag)).toBeUndefined();
});

it.each([
  ['dev.cosignproject.cosign/sigs', 'sig'],
  ['dev.cosignproject.cosign/atts', 'att'],
  ['dev.hauler/sboms', 'sbom'],
  ['dev.hauler/image', undefined],
  ['dev.other/sigs', undefined],
])('takes what is of kind %s for %s', (kind, expected) => {
  expect(companionKind(withAnnotations({ kind }))).toBe(expected);
});
