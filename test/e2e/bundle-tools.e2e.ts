/**
 * Bundles as the tools write them that sites have: the tools themselves make them here, and a whole DU reads and pushes
 * them.
 */
import { execFile } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createBundle, getBundle } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { buildDockerArchive, buildOciArchive, makeImage, makeIndex } from '@airdock/testing/bundles';
import {
  findProgram,
  ServerProcess,
  startRegistry,
  type TempDir,
  type TestRegistry,
  tempDir,
} from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { push, register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { resourceId, success } from '../support/jobs.js';
import { namesAt } from '../support/registry.js';

const execute = promisify(execFile);
let folder: TempDir;
let du: Du;
let client: Client;
/** Where the tools work; bundles are in the DU's own folder. */
let work: string;
beforeAll(async () => {
  folder = await tempDir('bundle-tools');
  work = join(folder.path, 'work');
  await mkdir(work, { recursive: true });
  await writeFile(join(work, 'file'), 'hello');
  du = await Du.start({ folder: folder.path, stopsRegistry: true });
  client = await du.client();
});
afterAll(async () => {
  await du?.stop();
  await folder?.remove();
});

const run = async (program: string, ...args: string[]): Promise<string> =>
  (await execute(program, args, { cwd: work, env: { ...process.env, HOME: work } })).stdout.trim();
const file = (name: string) => join(du.bundleDir, name);
const read = async (id: string) => (await getBundle({ client, path: { id }, throwOnError: true })).data;

/** Registers and pushes a bundle; all of its images must be in the registry then, under their flat names. */
async function arrives(id: string) {
  const bundle = await read(id);
  await push(client, id);
  const names = await namesAt(du.registryPort);
  for (const name of bundle.images.flatMap((image) => image.names).filter((each) => each.includes('/tools/')))
    expect(names).toContain(name.slice(name.indexOf('/') + 1));
  return bundle;
}

describe('podman and buildah', () => {
  const storage = () => ['--root', join(work, 'storage'), '--runroot', join(work, 'run'), '--storage-driver', 'vfs'];
  beforeAll(async () => {
    const container = await run('buildah', ...storage(), 'from', 'scratch');
    await run('buildah', ...storage(), 'copy', container, 'file', '/file');
    await run('buildah', ...storage(), 'commit', container, 'quay.io/tools/built:1');
    await run('podman', ...storage(), 'tag', 'quay.io/tools/built:1', 'quay.io/tools/built:latest');
  });

  it.each(['docker-archive', 'oci-archive'])('push a %s', async (format) => {
    await run(
      'buildah',
      ...storage(),
      'push',
      'quay.io/tools/built:1',
      `${format}:${file(`buildah-${format}.tar`)}:quay.io/tools/built:1`,
    );
    const { images, unusable } = await arrives(await register(client, file(`buildah-${format}.tar`)));
    expect({ names: images.map(({ names }) => names), unusable }).toEqual({
      names: [['quay.io/tools/built:1']],
      unusable: [],
    });
  });

  it('save one image under two names', async () => {
    await run(
      'podman',
      ...storage(),
      'save',
      '-m',
      '-o',
      file('podman.tar'),
      'quay.io/tools/built:1',
      'quay.io/tools/built:latest',
    );
    expect((await arrives(await register(client, file('podman.tar')))).images).toMatchObject([
      { names: ['quay.io/tools/built:1', 'quay.io/tools/built:latest'] },
    ]);
  });
});

it('umoci makes a layout with bare tags, which the request names', async () => {
  const layout = file('umoci');
  await run('umoci', 'init', '--layout', layout);
  await run('umoci', 'new', '--image', `${layout}:v1`);
  await run('umoci', 'insert', '--image', `${layout}:v1`, 'file', '/file');
  const body = { path: layout, names: { v1: 'quay.io/tools/umoci:v1' } };
  const id = resourceId(await success(client, createBundle({ client, body, throwOnError: true })));
  expect(await arrives(id)).toMatchObject({
    images: [{ names: ['quay.io/tools/umoci:v1'], platforms: ['linux/amd64'] }],
    unusable: [],
  });
});

it.each(['docker-archive', 'oci-archive'])('skopeo copies an image to a %s with its name', async (format) => {
  await buildDockerArchive(join(work, 'source.tar'), [
    await makeImage({ name: 'quay.io/tools/copied:1', layers: [{ files: { a: 'b' } }] }),
  ]);
  await run(
    'skopeo',
    '--insecure-policy',
    'copy',
    'docker-archive:source.tar',
    `${format}:${file(`skopeo-${format}.tar`)}:quay.io/tools/copied:1`,
  );
  expect((await arrives(await register(client, file(`skopeo-${format}.tar`)))).images).toMatchObject([
    { names: ['quay.io/tools/copied:1'] },
  ]);
});

/** crane, oras and regctl are built with Go, and are not there without it. */
describe('tools that copy from a registry', () => {
  let upstream: TestRegistry;
  let name: string;
  beforeAll(async () => {
    upstream = await startRegistry();
    name = `${new URL(upstream.url).host}/tools/remote:1`;
    await buildOciArchive(join(work, 'remote.tar'), [
      await makeImage({ name: 'quay.io/tools/remote:1', layers: [{ files: { a: 'remote' } }] }),
    ]);
    await run(
      'skopeo',
      '--insecure-policy',
      'copy',
      '--dest-tls-verify=false',
      'oci-archive:remote.tar',
      `docker://${name}`,
    );
  });
  afterAll(() => upstream?.stop());
  const named = async (path: string, key: string, as = 'quay.io/tools/remote:1') =>
    resourceId(
      await success(client, createBundle({ client, body: { path, names: { [key]: as } }, throwOnError: true })),
    );
  const digestOfRemote = async () =>
    (await run('skopeo', 'inspect', '--tls-verify=false', '--format', '{{.Digest}}', `docker://${name}`)).trim();

  it.skipIf(findProgram('crane') === undefined)(
    'crane writes tars with the name of the registry, and layouts without a name',
    async () => {
      await run('crane', 'pull', '--insecure', name, file('crane.tar'));
      expect(await arrives(await register(client, file('crane.tar')))).toMatchObject({
        images: [{ names: [name] }],
        unusable: [],
      });
      await run('crane', 'pull', '--insecure', '--format=oci', name, file('crane'));
      const digest = await digestOfRemote();
      expect(await arrives(await named(file('crane'), digest))).toMatchObject({
        images: [{ names: ['quay.io/tools/remote:1'], digest }],
        unusable: [],
      });
      await run('crane', 'pull', '--insecure', '--format=oci', '--annotate-ref', name, file('crane-annotated'));
      expect(await arrives(await register(client, file('crane-annotated')))).toMatchObject({
        images: [{ names: [name], digest }],
        unusable: [],
      });
    },
  );

  it.skipIf(findProgram('oras') === undefined)(
    'oras writes layouts with bare tags, of images and of artifacts',
    async () => {
      await run('oras', 'copy', '--from-plain-http', name, '--to-oci-layout', `${file('oras')}:1`);
      expect(await arrives(await named(file('oras'), '1'))).toMatchObject({
        images: [{ digest: await digestOfRemote() }],
        unusable: [],
      });
      const artifact = `${new URL(upstream.url).host}/tools/artifact:1`;
      await run(
        'oras',
        'push',
        '--plain-http',
        '--artifact-type',
        'application/vnd.site.rules',
        artifact,
        'file:text/plain',
      );
      await run(
        'oras',
        'copy',
        '--recursive',
        '--from-plain-http',
        artifact,
        '--to-oci-layout',
        `${file('oras-artifact')}:rules`,
      );
      expect(await arrives(await named(file('oras-artifact'), 'rules', 'quay.io/tools/rules:1'))).toMatchObject({
        images: [{ platforms: [], imageIds: [] }],
        unusable: [],
      });
    },
  );

  it.skipIf(findProgram('regctl') === undefined)(
    'regctl writes archives with both lists, whose digest stays',
    async () => {
      await run('regctl', 'registry', 'set', new URL(upstream.url).host, '--tls', 'disabled');
      await run('regctl', 'image', 'export', name, file('regctl.tar'));
      expect(await arrives(await register(client, file('regctl.tar')))).toMatchObject({
        images: [{ names: [name], digest: await digestOfRemote() }],
        unusable: [],
      });
    },
  );
});

describe('ctr of containerd', () => {
  let containerd: ServerProcess;
  let upstream: TestRegistry;
  const ctr = (...args: string[]) => run('ctr', '-a', join(work, 'containerd.sock'), '-n', 'k8s.io', 'images', ...args);
  beforeAll(async () => {
    upstream = await startRegistry();
    const config = join(work, 'containerd.toml');
    const lines = [
      'version = 2',
      `root = "${work}/containerd"`,
      `state = "${work}/containerd-state"`,
      'disabled_plugins = ["io.containerd.grpc.v1.cri"]',
    ];
    await writeFile(
      config,
      [
        ...lines,
        '[grpc]',
        `address = "${work}/containerd.sock"`,
        '[ttrpc]',
        `address = "${work}/containerd.ttrpc"`,
      ].join('\n'),
    );
    const ready = () =>
      ctr('ls', '-q').then(
        () => true,
        () => false,
      );
    containerd = new ServerProcess({ program: 'containerd', args: ['--config', config], ready });
    await containerd.start();
    const images = [];
    for (const architecture of ['amd64', 'arm64'])
      images.push(
        await makeImage({ name: 'x', layers: [{ files: { architecture } }], platform: { os: 'linux', architecture } }),
      );
    await buildOciArchive(join(work, 'multi.tar'), [makeIndex('quay.io/tools/multi:1', images)]);
    await run(
      'skopeo',
      '--insecure-policy',
      'copy',
      '--all',
      '--dest-tls-verify=false',
      'oci-archive:multi.tar',
      `docker://${new URL(upstream.url).host}/tools/multi:1`,
    );
  });
  afterAll(async () => {
    await containerd?.end();
    await upstream?.stop();
  });

  it('exports what the CRI keeps of a multi-platform image: one platform, under a tag, a digest and an ID', async () => {
    const name = `${new URL(upstream.url).host}/tools/multi:1`;
    await ctr('pull', '--plain-http', '--platform', 'linux/amd64', name);
    const [, digest = ''] = /(sha256:[0-9a-f]{64})/.exec((await ctr('ls', `name==${name}`)).split('\n')[1] ?? '') ?? [];
    const kept = ['quay.io/tools/multi:1', `quay.io/tools/multi@${digest}`, `sha256:${'0'.repeat(64)}`];
    for (const alias of kept) await ctr('tag', name, alias);
    await ctr('export', '--platform', 'linux/amd64', file('ctr.tar'), ...kept);
    const bundle = await arrives(await register(client, file('ctr.tar')));
    expect(bundle).toMatchObject({ images: [{ names: ['quay.io/tools/multi:1'], platforms: ['linux/amd64'] }] });
    expect(bundle.unusable.every(({ code }) => code === 'platforms_absent')).toBe(true);
  });

  it('exports all platforms, whose digest stays', async () => {
    const name = `${new URL(upstream.url).host}/tools/multi:1`;
    await ctr('pull', '--plain-http', '--all-platforms', name);
    await ctr('tag', '--force', name, 'quay.io/tools/all:1');
    const [, digest = ''] =
      /(sha256:[0-9a-f]{64})/.exec((await ctr('ls', 'name==quay.io/tools/all:1')).split('\n')[1] ?? '') ?? [];
    await ctr('export', '--all-platforms', file('ctr-all.tar'), 'quay.io/tools/all:1');
    expect(await arrives(await register(client, file('ctr-all.tar')))).toMatchObject({
      images: [{ names: ['quay.io/tools/all:1'], digest, platforms: ['linux/amd64', 'linux/arm64'] }],
      unusable: [],
    });
  });
});
