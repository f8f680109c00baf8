import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Descriptor, mediaTypes } from '@airdock/core/oci/manifest';
import { addArtifact, addManifest, buildOciLayout, makeImage } from '@airdock/testing/bundles';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { openBundle } from '../bundle/bundle.js';
import { filterPlatforms } from './platform-filter.js';

let folder: TempDir;
let count = 0;
beforeAll(async () => {
  folder = await tempDir('platform-filter');
  await mkdir(join(folder.path, 'work'));
});
afterAll(() => folder.remove());

const named = (name: string) => ({ 'org.opencontainers.image.ref.name': name });
const image = (name: string, architecture: string, variant?: string) =>
  makeImage({
    name,
    layers: [{ files: { name } }],
    platform: { os: 'linux', architecture, ...(variant ? { variant } : {}) },
  });

async function platformsOf(dir: string, wanted: string[]): Promise<Record<string, string[]>> {
  await using source = await filterPlatforms(await openBundle(dir, { workDir: join(folder.path, 'work') }), wanted);
  return Object.fromEntries(
    source.images.map(({ names, platforms }) => [
      names[0],
      platforms.map(({ architecture, variant }) => [architecture, variant].filter(Boolean).join('/')),
    ]),
  );
}

it('keeps what runs nowhere, whatever it pretends, and drops images for other platforms', async () => {
  const dir = join(folder.path, String(count++));
  await buildOciLayout(dir, [await image('quay.io/a/arm:1', 'arm64'), await image('quay.io/a/amd:1', 'amd64')]);
  const { config } = await image('quay.io/a/x:1', 'amd64');
  const empty = { type: 'application/vnd.oci.empty.v1+json', content: '{}' };
  await addArtifact(dir, {
    type: 'application/vnd.example.policy',
    text: 'p',
    annotations: named('quay.io/a/policy:1'),
  });
  await addManifest(dir, {
    config: { type: mediaTypes.ociConfig, content: config },
    layers: [{ type: 'application/vnd.example', content: 'x' }],
    annotations: named('quay.io/a/config:1'),
  });
  await addManifest(dir, {
    config: empty,
    layers: [{ type: mediaTypes.ociLayerGzip, content: 'x' }],
    artifactType: 'a/b',
    annotations: named('quay.io/a/type:1'),
  });
  const artifacts = { 'quay.io/a/policy:1': [], 'quay.io/a/config:1': [], 'quay.io/a/type:1': [] };
  expect(await platformsOf(dir, ['linux/arm64'])).toEqual({ 'quay.io/a/arm:1': ['arm64'], ...artifacts });
  expect(await platformsOf(dir, ['linux/s390x'])).toEqual(artifacts);
});

it('takes platforms for the same that are, and keeps an artifact that stands in an index beside them', async () => {
  const dir = join(folder.path, String(count++));
  const images = [await image('x', 'arm64', 'v8'), await image('x', 'arm', 'v6'), await image('x', 'amd64')];
  await buildOciLayout(dir, [{ names: ['quay.io/b/multi:1'], images }]);
  expect(await platformsOf(dir, ['linux/arm64'])).toEqual({ 'quay.io/b/multi:1': ['arm64/v8'] });
  expect(await platformsOf(dir, ['linux/arm64/v8', 'linux/arm/v7'])).toEqual({
    'quay.io/b/multi:1': ['arm64/v8', 'arm/v6'],
  });

  const mixed = join(folder.path, String(count++));
  const [one] = (await buildOciLayout(mixed, [await image('quay.io/b/one:1', 'amd64')])) as [Descriptor];
  const two = await addArtifact(mixed, { type: 'application/vnd.example.policy', text: 'p' });
  await using source = await filterPlatforms(await openBundle(mixed, { workDir: join(folder.path, 'work') }), [
    'linux/amd64',
  ]);
  expect(source.images.map(({ root }) => root?.digest)).toContain(one.digest);
  expect(two.digest).not.toBe(one.digest);
});
