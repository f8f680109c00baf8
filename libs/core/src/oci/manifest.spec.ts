import { describe, expect, it } from 'vitest';
import { digestOf } from './digest.js';
import { manifestReferences, parseImageConfig, parseManifest } from './manifest.js';

const [a, b, c, d] = ['a', 'b', 'c', 'd'].map((text) => digestOf(text)) as [string, string, string, string];
const references = (document: unknown) => manifestReferences(Buffer.from(JSON.stringify(document)));

describe('manifestReferences', () => {
  it('finds configuration and layers of an image, and its subject apart from them', () => {
    expect(
      references({ config: { digest: a }, layers: [{ digest: b }, { digest: c }], subject: { digest: d } }),
    ).toEqual({
      manifests: [],
      mentioned: [a, b, c],
      subject: d,
    });
  });

  it('finds the manifests of an index, and does not take a digest in their annotations for one', () => {
    const found = references({
      manifests: [{ digest: a, annotations: { 'vnd.docker.reference.digest': b } }, { digest: c }],
    });
    expect(found).toEqual({ manifests: [a, c], mentioned: [a, b, c], subject: undefined });
  });

  it('understands what Go would, and kinds that Airdock does not move', () => {
    expect(references({ Manifests: [{ Digest: a }], Subject: { digest: b } })).toEqual({
      manifests: [a],
      mentioned: [a],
      subject: b,
    });
    expect(references({ schemaVersion: 1, fsLayers: [{ blobSum: a }, { blobSum: b }] })).toMatchObject({
      mentioned: [a, b],
    });
    expect(references({ blobs: [{ digest: a }] })).toMatchObject({ mentioned: [a] });
    expect(manifestReferences(Buffer.from(`{"config":{"digest":"${a.replace('s', '\\u0073')}"}}`))).toMatchObject({
      mentioned: [a],
    });
  });

  it.each(['', '{', '[]', '"text"', 'null'])('refuses %j', (text) => {
    expect(() => manifestReferences(Buffer.from(text))).toThrow(expect.objectContaining({ code: 'bundle_corrupt' }));
  });
});

it('a document of very many values or keys is refused before it is parsed: not its bytes cost time, but what is in them', () => {
  const annotations = Object.fromEntries(Array.from({ length: 50_000 }, (_, index) => [index.toString(36), '']));
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [], annotations }));
  expect(() => parseManifest(bytes)).toThrow('an object with more than 10000 members');
  expect(() => parseManifest(Buffer.from(`{"schemaVersion":2,"manifests":[${'0,'.repeat(300_000)}0]}`))).toThrow(
    'more than 300000 values',
  );
  expect(() => parseImageConfig(Buffer.from(JSON.stringify(annotations)))).toThrow(
    'an image configuration is not valid',
  );
});
