import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { digestOf } from './digest.js';
import { mediaTypes } from './manifest.js';
import {
  explainObstacles,
  hasImageTypes,
  hasZstdLayers,
  isPlatformWanted,
  matchesPlatform,
  obstacleOn,
  platformTexts,
  runsOn,
} from './runs.js';

describe('matchesPlatform', () => {
  it.each([
    ['linux/arm64/v8', 'linux/arm64'],
    ['linux/arm64', 'linux/arm64/v8'],
    ['linux/arm64', 'linux/aarch64'],
    ['linux/arm64/8', 'linux/arm64'],
    ['linux/arm', 'linux/arm/v7'],
    ['linux/arm/v7', 'linux/armv7l'],
    ['linux/arm/v6', 'linux/arm'],
    ['linux/arm/v5', 'linux/armhf'],
    ['linux/arm/v6', 'linux/armv6l'],
    ['linux/amd64', 'linux/x86_64'],
    ['linux/amd64/v1', 'linux/amd64'],
    ['linux/amd64/v2', 'linux/amd64/v3'],
    ['linux/arm64/v8', 'linux/arm64/v9'],
    ['linux/arm64/v8.1', 'linux/arm64/v8.2'],
    ['linux/386', 'linux/i686'],
    ['linux/s390x', 'linux/s390x'],
  ])('%s runs on %s', (own, platform) => expect(matchesPlatform(own, platform)).toBe(true));

  it.each([
    ['linux/arm/v7', 'linux/armv6l'],
    ['linux/arm/v8', 'linux/arm'],
    ['linux/arm64', 'linux/arm'],
    ['linux/arm', 'linux/arm64'],
    ['linux/amd64/v2', 'linux/amd64'],
    ['linux/arm64/v9', 'linux/arm64'],
    ['linux/arm64/v8.2', 'linux/arm64/v8.1'],
    ['windows/amd64', 'linux/amd64'],
    ['linux/amd6', 'linux/amd64'],
    ['linux/constructor', 'linux/amd64'],
    ['linux/mips64le/softfloat', 'linux/mips64le'],
    ['', 'linux/amd64'],
  ])('%s does not run on %s', (own, platform) => expect(matchesPlatform(own, platform)).toBe(false));
});

it('a selection without a variant takes every variant, one with a variant what runs there', () => {
  const all = ['linux/amd64', 'linux/amd64/v3', 'linux/arm64/v8', 'linux/arm', 'linux/arm/v6', 'linux/arm/v8'];
  const wanted = (platform: string) => all.filter((own) => isPlatformWanted(own, platform));
  expect(wanted('linux/amd64')).toEqual(['linux/amd64', 'linux/amd64/v3']);
  expect(wanted('linux/arm64')).toEqual(['linux/arm64/v8']);
  expect(wanted('linux/arm64/v8')).toEqual(['linux/arm64/v8']);
  expect(wanted('linux/arm')).toEqual(['linux/arm', 'linux/arm/v6', 'linux/arm/v8']);
  expect(wanted('linux/arm/v7')).toEqual(['linux/arm', 'linux/arm/v6']);
});

it('finds in texts what a selection takes', () => {
  expect(platformTexts('linux/arm64')).toEqual(['linux/arm64', 'linux/arm64/']);
  expect(platformTexts('linux/armv7l')).toEqual(['linux/arm', 'linux/arm/']);
  expect(new Set(platformTexts('linux/arm64/v8'))).toEqual(
    new Set(['linux/arm64', ...Array.from({ length: 8 }, (_, index) => `linux/arm64/v${index + 1}`)]),
  );
  expect(platformTexts('linux/arm/v6')).not.toContain('linux/arm');
});

describe('runsOn', () => {
  const docker = (version: string | undefined) => ({
    platform: 'linux/amd64',
    runtime: { name: 'docker' as const, version },
  });
  const containerd = (version: string) => ({
    platform: 'linux/amd64',
    runtime: { name: 'containerd' as const, version },
  });
  const zstd = { platforms: ['linux/amd64', 'linux/arm64'], zstdPlatforms: ['linux/amd64'] };

  it('asks for the platform, and whether it is an image at all', () => {
    expect(obstacleOn({ platforms: [] }, docker('27.0.1'))).toBe('artifact');
    expect(obstacleOn({ platforms: ['linux/arm64'] }, docker('27.0.1'))).toBe('platform');
    expect(runsOn({ platforms: ['linux/arm64', 'linux/amd64'] }, docker('19.03'))).toBe(true);
    expect(runsOn({ platforms: ['linux/amd64'] }, { platform: 'linux/amd64' })).toBe(true);
  });

  it('knows who reads zstd; who does not say his version does not', () => {
    for (const where of [
      docker('20.10.24+dfsg1'),
      docker('19.03.15'),
      docker(undefined),
      docker('dev'),
      containerd('1.4.13'),
    ])
      expect(obstacleOn(zstd, where)).toBe('compression');
    for (const where of [
      docker('23.0.0'),
      docker('29.1.2'),
      containerd('1.6.20~ds1'),
      containerd('v2.1.0'),
      { platform: 'linux/amd64' },
    ])
      expect(runsOn(zstd, where)).toBe(true);
    expect(runsOn(zstd, { ...docker('20.10'), platform: 'linux/arm64' })).toBe(true);
    expect(runsOn({ ...zstd, platforms: [...zstd.platforms, 'linux/amd64/v1'] }, docker('20.10'))).toBe(true);
  });

  it('is told to people', () => {
    const left = [
      { name: 'chart', obstacle: 'artifact' as const },
      ...Array.from({ length: 7 }, (_, index) => ({ name: `i${index}`, obstacle: 'platform' as const })),
      { name: 'z', obstacle: 'compression' as const },
    ];
    expect(explainObstacles(left, docker('20.10'))).toBe(
      'chart (no image: needed in the registry only), i0, i1, i2, i3, i4 and 2 more (not for linux/amd64), z (layers compressed with zstd, which docker 20.10 does not read)',
    );
  });
});

describe('an image by the types in its manifest', () => {
  const descriptor = (mediaType: string, urls?: string[]) => ({
    mediaType,
    digest: digestOf(mediaType),
    size: 1,
    urls,
  });
  const manifest = (config: string, ...layers: string[]) => ({
    config: descriptor(config),
    layers: layers.map((type) => descriptor(type)),
  });

  it.each([
    [manifest(mediaTypes.ociConfig, mediaTypes.ociLayer, mediaTypes.ociLayerGzip, mediaTypes.ociLayerZstd)],
    [manifest(mediaTypes.dockerConfig, mediaTypes.dockerLayerGzip, 'application/vnd.docker.image.rootfs.diff.tar')],
    [manifest(mediaTypes.ociConfig, 'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip')],
    [manifest(mediaTypes.ociConfig)],
  ])('is one: %j', (image) => expect(hasImageTypes(image)).toBe(true));

  it.each([
    [
      'a chart',
      manifest('application/vnd.cncf.helm.config.v1+json', 'application/vnd.cncf.helm.chart.content.v1.tar+gzip'),
    ],
    ['an artifact with the empty configuration', manifest('application/vnd.oci.empty.v1+json', 'text/plain')],
    ['a policy with the configuration of an image', manifest(mediaTypes.ociConfig, 'application/vnd.example.policy')],
    ['a signature', manifest(mediaTypes.ociConfig, 'application/vnd.dev.cosign.simplesigning.v1+json')],
    ['a plugin of Docker', manifest('application/vnd.docker.plugin.v1+json', mediaTypes.dockerLayerGzip)],
    ['WebAssembly', manifest('application/vnd.wasm.config.v0+json', 'application/wasm')],
    ['encrypted layers', manifest(mediaTypes.ociConfig, `${mediaTypes.ociLayerGzip}+encrypted`)],
    ['layers of another compression', manifest(mediaTypes.ociConfig, `${mediaTypes.ociLayer}+lz4`)],
    ['layers of a vendor', manifest(mediaTypes.dockerConfig, mediaTypes.dockerForeignLayer)],
    [
      'layers that lie elsewhere',
      { config: descriptor(mediaTypes.ociConfig), layers: [descriptor(mediaTypes.ociLayerGzip, ['https://v.site/l'])] },
    ],
  ])('is none: %s', (_, artifact) => expect(hasImageTypes(artifact)).toBe(false));

  it('tells what is compressed with zstd', () => {
    expect(hasZstdLayers(manifest(mediaTypes.ociConfig, mediaTypes.ociLayerGzip, mediaTypes.ociLayerZstd))).toBe(true);
    expect(hasZstdLayers(manifest(mediaTypes.dockerConfig, 'application/vnd.docker.image.rootfs.diff.tar.zstd'))).toBe(
      true,
    );
    expect(hasZstdLayers(manifest(mediaTypes.ociConfig, mediaTypes.ociLayerGzip))).toBe(false);
  });
});

describe('platforms, whatever they are', () => {
  const variants = fc.constantFrom('', '/v5', '/v6', '/v7', '/v8', '/v9', '/v8.1', '/8');
  const platforms = fc
    .tuple(
      fc.constantFrom('linux', 'windows'),
      fc.constantFrom('amd64', 'arm64', 'arm', '386', 's390x', 'aarch64'),
      variants,
    )
    .map(([os, architecture, variant]) => `${os}/${architecture}${variant}`);

  it('run what is made for them, however they are spelt', () => {
    fc.assert(
      fc.property(platforms, (platform) => {
        expect(matchesPlatform(platform, platform)).toBe(true);
        expect(matchesPlatform(platform.toUpperCase(), platform)).toBe(true);
        expect(runsOn({ platforms: [platform] }, { platform })).toBe(true);
      }),
    );
  });

  it('run what a lesser one runs', () => {
    const ofOne = fc.constantFrom('arm', 'arm64', 'amd64').chain((architecture) => {
      const one = variants.map((variant) => `linux/${architecture}${variant}`);
      return fc.tuple(one, one, one);
    });
    fc.assert(
      fc.property(ofOne, ([a, b, c]) => {
        if (matchesPlatform(a, b) && matchesPlatform(b, c)) expect(matchesPlatform(a, c)).toBe(true);
      }),
    );
  });

  it('are found as text exactly where a selection wants them', () => {
    const known = platforms.filter((platform) => !/\.|\/8$|aarch64/.test(platform));
    fc.assert(
      fc.property(known, known, (own, wanted) => {
        const texts = platformTexts(wanted);
        const isFound = texts.some((text) => (text.endsWith('/') ? own.startsWith(text) : own === text));
        expect(isFound).toBe(isPlatformWanted(own, wanted));
      }),
    );
  });
});
