import { Readable } from 'node:stream';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { RateLimit } from '@airdock/ssh/connection/rate-limit';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import { DockerHost } from '../runtime/docker-host.js';
import { ConfigurationWork, type ConfigurationWorkOptions } from './configuration-work.js';
import { type BundledImage, type ImageBundle, type Warming, warmImages } from './images-step.js';

const image = (name: string, change: Partial<BundledImage> = {}): BundledImage => ({
  names: [`k8s.gcr.io/${name}:1`],
  localReferences: [`localhost:5100/${name}:1`],
  digest: `sha256:${'0'.repeat(64)}`,
  imageIds: [`id-of-${name}`],
  platforms: ['linux/amd64'],
  ...change,
});
const [pause, coredns] = [image('pause'), image('coredns')];
const local = (name: string): string => `localhost:5100/${name}:1`;

describe('images of a bundle', () => {
  let host: ScriptedHost;
  let images: BundledImage[];
  /** Images that the registry has. */
  let pushed: BundledImage[];
  let archives: { names: string[]; kind: string }[];
  let warnings: string[];
  let remembered: string[][];
  beforeEach(() => {
    host = new ScriptedHost();
    images = [pause, coredns];
    pushed = [];
    archives = [];
    warnings = [];
    remembered = [];
    for (const { localReferences, imageIds } of images)
      host.registry.set(localReferences[0] ?? '', { digest: `sha256:${'0'.repeat(64)}`, id: imageIds[0] ?? '' });
  });
  const bundle = (): ImageBundle => ({
    name: 'bundle.tar',
    images,
    inRegistry: async (wanted) =>
      new Map(wanted.filter((one) => pushed.includes(one)).map((one) => [one, one.localReferences[0] ?? ''])),
    archive: async (wanted, { names }) => {
      archives.push({ names: wanted.map((one) => one.names[0] ?? ''), kind: names });
      const entries = wanted.map((one) => [(names === 'local' ? one.localReferences : one.names)[0], one.imageIds[0]]);
      return Readable.from([Buffer.from(JSON.stringify(Object.fromEntries(entries)))]);
    },
  });
  const warm = (warming: Partial<Warming> = {}, options: Partial<ConfigurationWorkOptions> = {}) => {
    const signal = new AbortController().signal;
    const connection = host.connection as unknown as SshConnection;
    const work = new ConfigurationWork({
      connection,
      signal,
      dryRun: false,
      onStep: () => undefined,
      onWarning: (warning) => warnings.push(warning),
      remember: async ({ images: names = [] }) => void remembered.push(names),
      site: {
        registry: { port: 5100 },
        naming: ['flat'],
        mirroredUpstreams: [],
        packages: { repositories: [], install: { debian: [], redhat: [] }, docker: { debian: [], redhat: [] } },
      },
      facts: {
        family: 'debian',
        distribution: 'bookworm',
        docker: { isInstalled: true, version: '20.10.24' },
        containerd: { version: undefined },
      },
      wishes: { skipYumRepoInstall: false, skipDockerInstall: false },
      hasTunnel: true,
      ...options,
    });
    const where = { platform: 'linux/amd64', runtime: { name: 'docker' as const, version: '20.10.24' } };
    const runtime = new DockerHost(connection, signal);
    return warmImages(work, bundle(), { runtime, where, rename: true, limits: [], ...warming });
  };

  it('are pulled where the registry has them, and streamed where it does not', async () => {
    pushed = [pause];
    const { status, detail, changes } = await warm();
    expect([status, detail]).toEqual([
      'done',
      '2 of 2 images of bundle.tar, local names: 1 pulled through the tunnel, 1 streamed from the bundle',
    ]);
    expect(changes.map(({ action, target }) => `${action} ${target}`)).toEqual([
      `pull ${local('pause')}`,
      `load ${local('coredns')}`,
    ]);
    expect(host.changes).toEqual([`docker pull ${local('pause')}`, 'docker load --quiet']);
    expect(archives).toEqual([{ names: ['k8s.gcr.io/coredns:1'], kind: 'local' }]);
    expect(remembered).toEqual([[local('pause'), local('coredns'), local('pause')]]);
    expect([...host.images.keys()]).toEqual([local('pause'), local('coredns')]);
  });

  it('are not sent again', async () => {
    await warm();
    host.changes.length = 0;
    expect(await warm()).toMatchObject({
      status: 'unchanged',
      detail: '0 of 2 images of bundle.tar, local names',
    });
    host.images.set(local('pause'), 'another');
    expect((await warm()).changes.map(({ target }) => target)).toEqual([local('pause')]);
    expect(host.changes).toEqual(['docker load --quiet']);
  });

  it('are only planned in a dry run, or without a runtime', async () => {
    expect(await warm({}, { dryRun: true })).toMatchObject({ status: 'planned' });
    expect(await warm({ runtime: undefined })).toMatchObject({ status: 'planned' });
    expect([host.changes, remembered]).toEqual([[], []]);
  });

  it('keep their upstream names where that is wanted', async () => {
    pushed = [pause];
    await warm({ rename: false });
    expect([...host.images.keys()].toSorted()).toEqual(['k8s.gcr.io/coredns:1', 'k8s.gcr.io/pause:1']);
    expect(host.changes).toContain(`docker image rm ${local('pause')}`);
    expect(archives[0]?.kind).toBe('upstream');
  });

  it('are streamed, too, when a pull fails, with a warning', async () => {
    pushed = [pause, coredns];
    host.registry.delete(local('coredns'));
    const { detail } = await warm();
    expect(detail).toContain('2 pulled through the tunnel; 1 of the pulls failed: streamed');
    expect(warnings.join()).toContain(`${local('coredns')} could not be pulled, and comes from the bundle`);
    expect(host.images.get(local('coredns'))).toBe('id-of-coredns');
  });

  it('are streamed when a pull gets what somebody has pushed meanwhile', async () => {
    pushed = [pause, coredns];
    host.registry.set(local('pause'), { digest: `sha256:${'1'.repeat(64)}`, id: 'another' });
    await warm();
    expect(host.images.get(local('pause'))).toBe('id-of-pause');
  });

  it('are all streamed where bandwidth is bounded, and without a tunnel', async () => {
    pushed = [pause, coredns];
    await warm({ limits: [new RateLimit(1_000_000)] });
    expect(host.changes).toEqual(['docker load --quiet']);
    host.images.clear();
    host.changes.length = 0;
    await warm({}, { hasTunnel: false });
    expect(host.changes).toEqual(['docker load --quiet']);
  });

  it('that run nowhere, or not there, are left out', async () => {
    images = [pause, image('chart', { platforms: [] }), image('arm', { platforms: ['linux/arm64'] })];
    const { detail } = await warm();
    expect(detail).toContain('1 of 3 images of bundle.tar');
    expect(detail).toContain('k8s.gcr.io/chart:1 (no image: needed in the registry only)');
    expect(detail).toContain('k8s.gcr.io/arm:1 (not for linux/amd64)');
    expect(warnings).toEqual([]);
  });

  it('that the runtime cannot read are left out with a warning', async () => {
    images = [image('new', { zstdPlatforms: ['linux/amd64'] })];
    expect(await warm()).toMatchObject({ status: 'unchanged' });
    expect(warnings.join()).toContain('layers compressed with zstd');
  });

  it('that have only a digest are pulled, or left out with the reason', async () => {
    const name = `localhost:5100/digest@sha256:${'2'.repeat(64)}`;
    images = [image('digest', { names: [`k8s.gcr.io/digest@sha256:${'2'.repeat(64)}`], localReferences: [name] })];
    await warm();
    expect(warnings.at(-1)).toContain('the registry does not have them (push them first)');
    await warm({ limits: [new RateLimit(1_000_000)] });
    expect(warnings.at(-1)).toContain('bandwidth is bounded, which pulls are not');
    await warm({}, { hasTunnel: false });
    expect(warnings.at(-1)).toContain('the host has no tunnel');
    expect(host.changes).toEqual([]);
    pushed = [...images];
    host.registry.set(name, { digest: `sha256:${'2'.repeat(64)}`, id: 'id-of-digest' });
    expect(await warm()).toMatchObject({ status: 'done' });
    expect(host.images.get(name)).toBe('id-of-digest');
  });

  it('that can only be pulled are no success when they could not be', async () => {
    const name = `localhost:5100/digest@sha256:${'2'.repeat(64)}`;
    images = [image('digest', { names: [`k8s.gcr.io/digest@sha256:${'2'.repeat(64)}`], localReferences: [name] })];
    pushed = [...images];
    await expect(warm()).rejects.toMatchObject({
      code: 'host_pull_failed',
      details: { detail: `${name} can only be pulled, and could not be: see the warnings` },
    });
    expect(remembered).toEqual([[name, name]]);
  });
});
