import { type Descriptor, type ImageManifest, mediaTypes, type Platform } from './manifest.js';

/**
 * The one answer to "does this image run there?". It has three parts:
 *
 * - A manifest is an image when its configuration is of an image's type and speaks of layers and of a platform, and all
 *   of its layers are such as a runtime unpacks.
 *   Charts, files, signatures, what is encrypted and what lies with its vendor run nowhere: they are needed in the
 *   registry only.
 * - A platform runs what is made for it and for the lesser variants of its architecture, as containerd matches them:
 *   `arm64` is `arm64/v8`, `arm` is `arm/v7`, which
 *   runs v6 and v5 too; `amd64` is its first level, and `amd64/v3` runs v2 and v1 too. Source:
 *   https://github.com/containerd/platforms/blob/main/compare.go
 * - Layers compressed with zstd need Docker 23 or containerd 1.5.
 */
export interface Runnable {
  /** Of what is an image in it, as `formatPlatform` writes them; empty for what runs nowhere. */
  platforms: readonly string[];
  /** Those of them that have layers compressed with zstd. */
  zstdPlatforms?: readonly string[] | null | undefined;
}

/** A host, as far as it decides what runs there. */
export interface RunsWhere {
  /** e.g. `linux/amd64`; the architecture may be as `uname -m` says it. */
  platform: string;
  /** Undefined: whatever pulls images today. */
  runtime?: { name: 'docker' | 'containerd'; version: string | undefined } | undefined;
}

/** What every `docker load` understands. */
export const dockerLoad: RunsWhere['runtime'] = { name: 'docker', version: '20.10' };

/** Why an image does not run: it is none, it is for other platforms, or its layers are too new for the runtime. */
export type Obstacle = 'artifact' | 'platform' | 'compression';

/** Whether an image runs on a host. */
export const runsOn = (image: Runnable, where: RunsWhere): boolean => obstacleOn(image, where) === undefined;

/** Undefined where the image runs. */
export function obstacleOn(
  { platforms, zstdPlatforms }: Runnable,
  { platform, runtime }: RunsWhere,
): Obstacle | undefined {
  if (platforms.length === 0) return 'artifact';
  const fitting = platforms.filter((own) => matchesPlatform(own, platform));
  if (fitting.length === 0) return 'platform';
  return runtime && !knowsZstd(runtime) && fitting.every((own) => zstdPlatforms?.includes(own))
    ? 'compression'
    : undefined;
}

/** For people: `a, b (no image: needed in the registry only), c (not for linux/arm64)`; of each kind the first few. */
export function explainObstacles(
  left: readonly { name: string; obstacle: Obstacle }[],
  { platform, runtime }: RunsWhere,
): string {
  const reasons: Record<Obstacle, string> = {
    artifact: 'no image: needed in the registry only',
    platform: `not for ${platform}`,
    compression:
      `layers compressed with zstd, which ${runtime?.name ?? 'the runtime'} ${runtime?.version ?? ''} does not read`.replace(
        / +/g,
        ' ',
      ),
  };
  return Object.entries(reasons)
    .map(([obstacle, reason]) => ({
      reason,
      names: left.filter((one) => one.obstacle === obstacle).map(({ name }) => name),
    }))
    .filter(({ names }) => names.length > 0)
    .map(
      ({ reason, names }) =>
        `${names.slice(0, 5).join(', ')}${names.length > 5 ? ` and ${names.length - 5} more` : ''} (${reason})`,
    )
    .join(', ');
}

/** True when what is made for `own` runs on `platform`; both as `formatPlatform` writes them. */
export function matchesPlatform(own: string, platform: string): boolean {
  const [made, host] = [parsePlatform(own), parsePlatform(platform)];
  if (made.os !== host.os || made.architecture !== host.architecture) return false;
  if (made.variant === host.variant) return true;
  const [needed, has] = [made.variant, host.variant].map((variant) => /^v(\d+)(?:\.(\d+))?$/.exec(variant ?? ''));
  if (!needed || !has) return false;
  return Number(needed[1]) < Number(has[1]) || (needed[1] === has[1] && Number(needed[2] ?? 0) <= Number(has[2] ?? 0));
}

/**
 * For selections, which come before the hosts are known: a platform without a variant stands for all of its variants,
 * one with a variant for what runs there.
 */
export function isPlatformWanted(own: string, wanted: string): boolean {
  const [made, asked] = [parsePlatform(own), parsePlatform(wanted)];
  return wanted.split('/').length < 3
    ? made.os === asked.os && made.architecture === asked.architecture
    : matchesPlatform(own, wanted);
}

/**
 * All texts of platforms that `isPlatformWanted` is true for, where such are kept as text; one that ends in `/` stands
 * for all that begin so. Variants are known up to v9, minor ones not at all.
 */
export function platformTexts(wanted: string): string[] {
  const { os, architecture } = parsePlatform(wanted);
  const base = `${os}/${architecture}`;
  if (wanted.split('/').length < 3) return [base, `${base}/`];
  return [base, ...Array.from({ length: 9 }, (_, index) => `${base}/v${index + 1}`), wanted].filter((text) =>
    isPlatformWanted(text, wanted),
  );
}

/**
 * Names that mean the same as others, as Go, dpkg and the kernel have them. Source:
 * https://github.com/containerd/platforms/blob/main/database.go
 */
const otherNames: Record<string, [architecture: string, variant?: string]> = {
  x86_64: ['amd64'],
  'x86-64': ['amd64'],
  i386: ['386'],
  i486: ['386'],
  i586: ['386'],
  i686: ['386'],
  aarch64: ['arm64'],
  armhf: ['arm', 'v7'],
  armel: ['arm', 'v6'],
  armv5l: ['arm', 'v5'],
  armv6l: ['arm', 'v6'],
  armv7l: ['arm', 'v7'],
};
/** Of an architecture that has variants: what it is without one. */
const defaultVariants: Record<string, string> = { arm64: 'v8', arm: 'v7', amd64: 'v1' };

const own = <T>(table: Record<string, T>, key: string): T | undefined =>
  Object.hasOwn(table, key) ? table[key] : undefined;

function parsePlatform(text: string): Platform {
  const [os = '', name = '', said = ''] = text.toLowerCase().split('/');
  const [architecture, implied] = own(otherNames, name) ?? [name];
  return {
    os,
    architecture,
    variant: (/^\d/.test(said) ? `v${said}` : said) || implied || own(defaultVariants, architecture),
  };
}

const knowsZstd = ({ name, version = '' }: NonNullable<RunsWhere['runtime']>): boolean => {
  const [, major = '0', minor = '0'] = /^v?(\d{1,4})(?:\.(\d{1,4}))?/.exec(version) ?? [];
  return name === 'docker' ? Number(major) >= 23 : Number(major) > 1 || (Number(major) === 1 && Number(minor) >= 5);
};

/** Whether a configuration is that of an image, and not of an artifact. */
export const isImageConfig = ({ mediaType }: Descriptor): boolean =>
  mediaType === mediaTypes.ociConfig || mediaType === mediaTypes.dockerConfig;

/** Layers that a runtime unpacks: with the compression that is said, if any. */
const layerPattern =
  /^application\/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+(gzip|zstd))?|docker\.image\.rootfs\.diff\.tar(?:\.(gzip|zstd))?)$/;

/** Whether the types in a manifest are those of an image. What its configuration says decides the rest. */
export const hasImageTypes = ({ config, layers }: Pick<ImageManifest, 'config' | 'layers'>): boolean =>
  // What lies elsewhere is out of reach behind an air gap.
  isImageConfig(config) && layers.every(({ mediaType, urls }) => layerPattern.test(mediaType) && !urls?.length);

/** Whether layers are compressed by zstd, which Docker pulls from version 23 on. */
export const hasZstdLayers = ({ layers }: Pick<ImageManifest, 'layers'>): boolean =>
  layers.some(({ mediaType }) => /[+.]zstd$/.test(mediaType));
