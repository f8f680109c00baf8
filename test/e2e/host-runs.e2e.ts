/**
 * What runs on a host and what does not, and whether its runtime really pulls as it was told: real Docker, containerd
 * and dnf.
 */

import { execFile } from 'node:child_process';
import { appendFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { zstdCompressSync } from 'node:zlib';
import {
  createImageSet,
  createReadinessCheck,
  getBundle,
  getHost,
  getMissingImages,
  getReadinessCheck,
  listImages,
} from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { digestOf } from '@airdock/core/oci/digest';
import { type Descriptor, mediaTypes } from '@airdock/core/oci/manifest';
import { addArtifact, addManifest, buildOciLayout, makeImage } from '@airdock/testing/bundles';
import type { HostOptions, LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { addYumMetadata, makeRpm } from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { beforeAll, describe, expect, it } from 'vitest';
import { push, register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import {
  checkHost,
  configureHost,
  dockerNames,
  out as outOf,
  planOf,
  registerHost,
  statuses,
} from '../support/hosts.js';
import { resourceId, success } from '../support/jobs.js';
import { endWithLab } from '../support/lab-ends.js';

const run = promisify(execFile);
const started = await startLab();
if (!started.lab) process.stderr.write(`host runs: skipped: ${started.reason}\n`);

const named = (name: string) => ({ 'org.opencontainers.image.ref.name': name });
const image = (name: string, platform = { os: 'linux', architecture: 'amd64' }) =>
  makeImage({ name, layers: [{ files: { 'hello.txt': name } }], platform });

/** An image whose layer is compressed with zstd. */
async function addZstdImage(dir: string, name: string) {
  const { config, layers } = await image(name);
  const content = layers.map(({ tar }) => ({ type: mediaTypes.ociLayerZstd, content: zstdCompressSync(tar) }));
  await addManifest(dir, {
    config: { type: mediaTypes.ociConfig, content: config },
    layers: content,
    annotations: named(name),
  });
}

/** What looks like an image until it is unpacked: its layer is not what its configuration says. */
async function addLiar(dir: string, name: string) {
  const { config, layers } = await image(name);
  const content = config.toString().replace(/sha256:[0-9a-f]{64}/, digestOf(name));
  const gzip = layers.map((layer) => ({ type: mediaTypes.ociLayerGzip, content: layer.gzip }));
  await addManifest(dir, { config: { type: mediaTypes.ociConfig, content }, layers: gzip, annotations: named(name) });
}

const addChart = (dir: string, name: string) =>
  addManifest(dir, {
    config: { type: 'application/vnd.cncf.helm.config.v1+json', content: '{"name":"chart","version":"1.0.0"}' },
    layers: [{ type: 'application/vnd.cncf.helm.chart.content.v1.tar+gzip', content: 'a chart' }],
    annotations: named(name),
  });

/** Everything of an image but its layers: what the smallest row of a catalogue may be. */
const addPolicy = async (dir: string, name: string) =>
  addManifest(dir, {
    config: { type: mediaTypes.ociConfig, content: (await image(name)).config },
    layers: [{ type: 'application/vnd.example.policy', content: 'p' }],
    annotations: named(name),
  });

describe.skipIf(!started.lab)('on a host', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  const hosts = {} as Record<'docker' | 'containerd' | 'dnf', LabHost>;
  const ids = {} as Record<keyof typeof hosts, string>;
  const out = (name: keyof typeof hosts, command: string) => outOf(hosts[name], command);
  const local = (name: string) => `localhost:${du.registryPort}/${name}`;

  /** Registers a layout that `fill` adds to. Returns the bundle's id. */
  async function carry(name: string, images: string[], fill: (dir: string) => Promise<unknown>): Promise<string> {
    const dir = join(du.bundleDir, name);
    await buildOciLayout(dir, await Promise.all(images.map((one) => image(one))));
    await fill(dir);
    return register(client, dir);
  }

  beforeAll(async () => {
    folder = await tempDir('host-runs');
    const yum = join(folder.path, 'yum');
    await mkdir(yum);
    await makeRpm(yum, 'lab-agent');
    await addYumMetadata(yum);
    const packages = { repositories: [{ name: 'el', format: 'yum', folder: yum }], install: { redhat: ['lab-agent'] } };
    const rocky = 'ID=rocky\nVERSION_ID=8.9\nID_LIKE="rhel centos fedora"\nPLATFORM_ID="platform:el8"';
    const options: Record<keyof typeof hosts, HostOptions> = {
      docker: {},
      containerd: { withContainerd: true },
      dnf: { osRelease: rocky },
    };
    const starts = Object.entries(options).map(async ([name, option]) => {
      hosts[name as keyof typeof hosts] = await lab.startHost({ name, ...option });
    });
    [du] = await Promise.all([Du.start({ folder: folder.path, packages }), ...starts]);
    client = await du.client();
    for (const [name, host] of Object.entries(hosts)) {
      const username = name === 'docker' ? 'root' : 'admin';
      ids[name as keyof typeof hosts] = await registerHost(client, host, {
        name,
        credential: { username, privateKey: host.privateKey },
      });
    }
  });
  endWithLab(lab, () => ({ du, folder }));

  it('the proof pulls what runs there, whatever else is in the registry', async () => {
    const artifacts = await carry('artifacts', [], async (dir) => {
      await addArtifact(dir, {
        type: 'application/vnd.example.policy',
        text: 'p',
        annotations: named('quay.io/a/empty:1'),
      });
      await addPolicy(dir, 'quay.io/a/policy:1');
      await addChart(dir, 'quay.io/a/chart:1');
    });
    await push(client, artifacts);
    for (const name of ['docker', 'containerd'] as const) {
      const { job, result } = await configureHost(client, ids[name]);
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(result.steps.find((step) => step.name === 'verify')).toMatchObject({ status: 'skipped' });
    }
    // More of them than are tried of one bundle.
    const liars = await carry('liars', [], async (dir) => {
      for (const index of [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]) await addLiar(dir, `quay.io/b/liar${index}:1`);
    });
    for (const bundle of [liars, await carry('real', ['quay.io/b/real-and-larger:1'], async () => undefined)])
      await push(client, bundle);
    const { data } = await listImages({
      client,
      query: { sort: 'smallest', limit: 1, search: 'quay.io/b/' },
      throwOnError: true,
    });
    expect(data.items[0]?.upstream).toContain('quay.io/b/liar');
    for (const name of ['docker', 'containerd'] as const) {
      const { job, result } = await configureHost(client, ids[name]);
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(result.steps.find((step) => step.name === 'verify')).toMatchObject({
        status: 'done',
        detail: expect.stringContaining('b/real-and-larger@sha256:') as string,
      });
      expect(result.warnings.join('\n')).toContain('not pulled, though another image was');
    }
  });

  it('through containerd images come as the kubelet lets them come', async () => {
    expect(await out('containerd', 'ctr --namespace k8s.io images list')).toMatch(
      /\/b\/real-and-larger@sha256.*io\.cri-containerd\.image=managed/,
    );
    // The user may only use sudo: the next is root.
    const id = await registerHost(client, hosts.containerd, { name: 'as-root' });
    const { result } = await checkHost(client, id, [local('b/real-and-larger:1')]);
    expect(result).toMatchObject({ pulls: [{ error: null }] });
    expect(await out('containerd', 'ctr --namespace k8s.io images list')).toMatch(
      /\/b\/real-and-larger:1 .*io\.cri-containerd\.image=managed/,
    );
  });

  describe('a bundle with more than images', () => {
    let haul: string;
    const upstreams = [
      'quay.io/c/app:1',
      'quay.io/c/chart:1',
      'quay.io/c/file:1',
      'quay.io/c/arm:1',
      'quay.io/c/zstd:1',
    ];

    it('gives hosts what runs on them, and says what does not', async () => {
      haul = await carry('haul', ['quay.io/c/app:1'], async (dir) => {
        await addChart(dir, 'quay.io/c/chart:1');
        await addArtifact(dir, {
          type: 'application/vnd.content.hauler.file.layer.v1',
          text: 'f',
          annotations: named('quay.io/c/file:1'),
        });
        const { config, layers } = await image('quay.io/c/arm:1', { os: 'linux', architecture: 'arm64' });
        const gzip = layers.map((layer) => ({ type: mediaTypes.ociLayerGzip, content: layer.gzip }));
        await addManifest(dir, {
          config: { type: mediaTypes.ociConfig, content: config },
          layers: gzip,
          annotations: named('quay.io/c/arm:1'),
        });
        await addZstdImage(dir, 'quay.io/c/zstd:1');
      });
      // From the bundle alone first.
      const streamed = await configureHost(client, ids.docker, { bundleIds: [haul] });
      expect(streamed.job).toMatchObject({ state: 'succeeded', error: null });
      const step = streamed.result.steps.find(({ name }) => name === 'images');
      expect(step).toMatchObject({
        status: 'done',
        detail: expect.stringContaining('1 of 5 images of haul') as string,
      });
      expect(step?.detail).toContain(
        'quay.io/c/chart:1, quay.io/c/file:1 (no image: needed in the registry only), quay.io/c/arm:1 (not for linux/amd64)',
      );
      expect(step?.detail).toContain('quay.io/c/zstd:1 (layers compressed with zstd');
      expect(streamed.result.warnings.join()).toContain('quay.io/c/zstd:1');
      expect(await dockerNames(hosts.docker)).toEqual(
        expect.arrayContaining([local('c/app:1'), local('quay.io/c/app:1')]),
      );
      expect(statuses((await configureHost(client, ids.docker, { bundleIds: [haul] })).result)).toMatchObject({
        images: 'unchanged',
      });
    });

    it('brings what only a registry can give from there, also what has only a digest', async () => {
      const before = await configureHost(client, ids.containerd, { bundleIds: [haul] });
      expect(before.job).toMatchObject({ state: 'succeeded', error: null });
      expect(before.result.warnings.join()).toContain(
        'they can only be pulled, and the registry does not have them (push them first): quay.io/c/zstd:1',
      );
      await push(client, haul);
      const after = await configureHost(client, ids.containerd, { bundleIds: [haul] });
      expect(after.job).toMatchObject({ state: 'succeeded', error: null });
      expect(planOf(after.result)).toEqual([`image pull ${local('c/zstd:1')}`]);
      expect(await out('containerd', 'ctr --namespace k8s.io images list --quiet')).toContain(
        local('quay.io/c/zstd:1'),
      );

      const one = await image('quay.io/d/digest:1');
      const dir = join(du.bundleDir, 'digest');
      const [{ digest: known }] = (await buildOciLayout(dir, [one])) as [Descriptor];
      const [root] = await buildOciLayout(dir, [{ ...one, names: [`quay.io/d/digest@${known}`] }]);
      const digests = await register(client, dir);
      expect((await getBundle({ client, path: { id: digests }, throwOnError: true })).data.images[0]?.names).toEqual([
        `quay.io/d/digest@${root?.digest}`,
      ]);
      await push(client, digests);
      for (const name of ['docker', 'containerd'] as const) {
        const { job, result } = await configureHost(client, ids[name], { bundleIds: [digests] });
        expect(job).toMatchObject({ state: 'succeeded', error: null });
        expect(planOf(result)).toEqual([`image pull ${local(`d/digest@${root?.digest}`)}`]);
        expect(statuses((await configureHost(client, ids[name], { bundleIds: [digests] })).result)).toMatchObject({
          images: 'unchanged',
        });
      }
    });

    it('makes an image set that is ready where its images run; charts and files only have to be in the registry', async () => {
      const readiness = async (version: string, images: string[]) => {
        const { data: set } = await createImageSet({
          client,
          body: { name: `set-${version}`, kubernetesVersion: version, images },
          throwOnError: true,
        });
        const body = { kubernetesVersion: version, hostIds: [ids.docker], pull: 'all' as const };
        const job = await success(client, createReadinessCheck({ client, body, throwOnError: true }));
        const { data } = await getReadinessCheck({ client, path: { id: resourceId(job) }, throwOnError: true });
        return { set, result: data.result };
      };
      const [app, chart, file, arm, zstd] = upstreams as [string, string, string, string, string];
      const { set, result } = await readiness('1.30.1', [app, chart, file]);
      expect((await getMissingImages({ client, path: { id: set.id }, throwOnError: true })).data.missing).toEqual([]);
      expect(result).toMatchObject({
        ready: true,
        missingImages: [],
        problems: [],
        hosts: [{ pulled: 1, failedPulls: [] }],
      });
      const others = await readiness('1.30.2', [app, arm, zstd]);
      expect(others.result).toMatchObject({
        ready: false,
        missingImages: [
          { upstream: arm, state: 'wrongPlatform', platforms: ['linux/amd64'] },
          { upstream: zstd, state: 'wrongRuntime' },
        ],
      });
    });
  });

  describe('the configuration that counts is the one in force:', () => {
    const driftOf = async (name: keyof typeof hosts) => {
      await configureHost(client, ids[name], { action: 'reapply', dryRun: true });
      return (await getHost({ client, path: { id: ids[name] }, throwOnError: true })).data.drift;
    };
    const checkOf = async (name: keyof typeof hosts) =>
      (await checkHost(client, ids[name])).result?.checks.find((check) => check.name === 'runtime configuration');
    const restart = (name: 'docker' | 'containerd') => out(name, `service ${name} restart`);
    const edit = async (text: string) => {
      await out('containerd', `cat >/etc/containerd/config.toml <<'END'\n${text}\nEND`);
      await restart('containerd');
    };

    it('what containerd imports may take its place', async () => {
      expect(await checkOf('containerd')).toMatchObject({ status: 'pass' });
      await configureHost(client, ids.containerd, { action: 'unconfigure' });
      const debian = await out('containerd', 'cat /etc/containerd/config.toml');
      const dropIn = '/etc/containerd/conf.d/99-nvidia.toml';
      await out(
        'containerd',
        `mkdir -p /etc/containerd/conf.d && printf '%s\\n' 'version = 2' '[plugins."io.containerd.grpc.v1.cri".containerd]' 'default_runtime_name = "runc"' >${dropIn}`,
      );
      await edit(`imports = ["/etc/containerd/conf.d/*.toml"]\n${debian}`);
      const { job } = await configureHost(client, ids.containerd);
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'host_config_ineffective', nextStep: expect.stringContaining('imports') as string },
      });
      expect(job.error?.detail).toContain(dropIn);
      expect(job.error?.detail).toContain('config_path = ""');
      // Saying it there too is what cures it.
      await out(
        'containerd',
        `printf '%s\\n' '[plugins."io.containerd.grpc.v1.cri".registry]' 'config_path = "/etc/containerd/certs.d"' >>${dropIn}`,
      );
      await restart('containerd');
      expect((await configureHost(client, ids.containerd)).job).toMatchObject({ state: 'succeeded', error: null });
      expect(await driftOf('containerd')).toMatchObject({ changes: [], error: null });
      await out('containerd', `sed -i '/registry\\]/,$d' ${dropIn}`);
      await restart('containerd');
      expect(await driftOf('containerd')).toMatchObject({ error: { code: 'host_config_ineffective' } });
      expect(await checkOf('containerd')).toMatchObject({
        status: 'failure',
        seen: expect.stringContaining('config_path = ""') as string,
      });
      await out('containerd', `rm -r /etc/containerd/conf.d`);
      await restart('containerd');
      expect(await driftOf('containerd')).toMatchObject({ changes: [], error: null });
    });

    it('a containerd that was started with another file is told', async () => {
      await out(
        'containerd',
        'cp /etc/containerd/config.toml /etc/containerd/other.toml; sed -i "s/config_path = .*/config_path = \\"\\"/" /etc/containerd/other.toml',
      );
      await out('containerd', 'echo OPTS=--config=/etc/containerd/other.toml >/etc/default/containerd');
      await restart('containerd');
      expect(await checkOf('containerd')).toMatchObject({
        status: 'failure',
        seen: expect.stringContaining('/etc/containerd/other.toml') as string,
      });
      expect((await configureHost(client, ids.containerd)).job).toMatchObject({
        error: { code: 'host_config_ineffective' },
      });
      await out('containerd', 'rm /etc/default/containerd /etc/containerd/other.toml');
      await restart('containerd');
      expect(await checkOf('containerd')).toMatchObject({ status: 'pass' });
    });

    const imported =
      'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = "runc"\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/containerd/certs.d"';
    it.each([
      ['its file', '/etc/containerd/config.toml', ':'],
      [
        'a file that it imports',
        '/etc/containerd/conf.d/a.toml',
        `mkdir -p /etc/containerd/conf.d; echo '${imported}' >/etc/containerd/conf.d/a.toml; grep -q ^imports /etc/containerd/config.toml || sed -i '1i imports = ["/etc/containerd/conf.d/*.toml"]' /etc/containerd/config.toml`,
      ],
      [
        'the file of its command line',
        '/etc/containerd/other.toml',
        'cp /etc/containerd/config.toml /etc/containerd/other.toml && echo OPTS=--config=/etc/containerd/other.toml >/etc/default/containerd',
      ],
    ])('a containerd that was started before %s was changed is told, and restarted', async (_what, file, prepare) => {
      expect((await configureHost(client, ids.containerd)).job).toMatchObject({ state: 'succeeded', error: null });
      await out('containerd', 'cp -a /etc/containerd /root/before');
      try {
        await out('containerd', prepare);
        await restart('containerd');
        expect(await checkOf('containerd')).toMatchObject({ status: 'pass' });
        const age = async () => Number(await out('containerd', 'ps -o etimes= -C containerd | head -n 1'));
        await waitFor(async () => (await age()) > 5, {
          what: 'containerd to be older than the next change',
          timeoutMs: 30_000,
        });
        await out('containerd', `echo '# changed' >>${file}`);
        expect(await checkOf('containerd')).toMatchObject({
          status: 'failure',
          seen: expect.stringContaining(`${file} was changed`) as string,
        });
        expect(await driftOf('containerd')).toMatchObject({
          changes: [{ kind: 'service', action: 'restart', target: 'containerd' }],
          error: null,
        });
        const { job, result } = await configureHost(client, ids.containerd);
        expect(job).toMatchObject({ state: 'succeeded', error: null });
        expect(planOf(result)).toContain('service restart containerd');
        expect(await driftOf('containerd')).toMatchObject({ changes: [], error: null });
        expect(await checkOf('containerd')).toMatchObject({ status: 'pass' });
      } finally {
        await out('containerd', 'rm -rf /etc/default/containerd /etc/containerd; mv /root/before /etc/containerd');
        await restart('containerd');
      }
    });

    it('where nothing on the host can ask the CRI, ctr pulls, and that is said', async () => {
      await out('containerd', 'mv /usr/bin/curl /root/curl');
      const { job, result } = await configureHost(client, ids.containerd);
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(result.warnings.join()).toContain('not through the CRI');
      await out('containerd', 'mv /root/curl /usr/bin/curl');
      expect((await configureHost(client, ids.containerd)).result.warnings.join()).not.toContain('not through the CRI');
    });

    it('a containerd without a CRI, as the package containerd.io brings it, is of no use to Kubernetes', async () => {
      const before = await out('containerd', 'cat /etc/containerd/config.toml');
      for (const text of [
        'disabled_plugins = ["cri"]',
        'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]',
      ]) {
        await edit(text);
        const { job, result } = await configureHost(client, ids.containerd);
        expect(job).toMatchObject({
          state: 'failed',
          error: { code: 'host_cri_unavailable', nextStep: expect.stringContaining('disabled_plugins') as string },
        });
        expect(planOf(result).filter((change) => change.includes('containerd'))).toEqual([]);
        expect(await out('containerd', 'cat /etc/containerd/config.toml')).toBe(text);
        expect(await checkOf('containerd')).toMatchObject({ status: 'failure' });
        const { result: checked } = await checkHost(client, ids.containerd, [local('b/real-and-larger:1')]);
        expect(checked).toMatchObject({ ok: false, pulls: [{ error: { code: 'host_cri_unavailable' } }] });
      }
      await edit(before);
      expect(await checkOf('containerd')).toMatchObject({ status: 'pass' });
    });

    it('credentials of the site in config.toml stay where they are', async () => {
      await configureHost(client, ids.containerd, { action: 'unconfigure' });
      const before = await out('containerd', 'cat /etc/containerd/config.toml');
      const auth =
        '[plugins."io.containerd.grpc.v1.cri".registry.configs."r.site:5000".auth]\nusername = "u"\npassword = "p"';
      await edit(`${before}\n${auth}`);
      expect((await configureHost(client, ids.containerd)).job).toMatchObject({ state: 'succeeded', error: null });
      expect(await out('containerd', 'cat /etc/containerd/config.toml')).toContain(auth);
      expect(await out('containerd', 'containerd config dump')).toMatch(
        /config_path = "\/etc\/containerd\/certs.d"[^]*username = "u"/,
      );
    });

    it('a dockerd that reads another file is told', async () => {
      await out('docker', "echo '{}' >/etc/docker/other.json; cp /etc/default/docker /etc/default/docker.old");
      await out('docker', `echo 'OPTS="$OPTS --config-file=/etc/docker/other.json"' >>/etc/default/docker`);
      await restart('docker');
      expect(await checkOf('docker')).toMatchObject({
        status: 'failure',
        seen: expect.stringContaining('--config-file') as string,
      });
      expect(await driftOf('docker')).toMatchObject({
        changes: [{ kind: 'service', action: 'reload', target: 'docker' }],
      });
      expect((await configureHost(client, ids.docker)).job).toMatchObject({
        state: 'failed',
        error: { code: 'host_config_ineffective' },
      });
      await out('docker', 'mv /etc/default/docker.old /etc/default/docker');
      await restart('docker');
      expect(await checkOf('docker')).toMatchObject({ status: 'pass' });
    });

    it('a mirror that others put before ours is told, and comes behind it', async () => {
      const own = `http://127.0.0.1:${du.registryPort}`;
      const mirrors = () => out('docker', "docker info --format '{{json .RegistryConfig.Mirrors}}'");
      const before = await out('docker', 'cat /etc/docker/daemon.json');
      await out(
        'docker',
        `printf '%s' '{"registry-mirrors": ["http://10.255.255.1:5000", "${own}"]}' >/etc/docker/daemon.json`,
      );
      await restart('docker');
      expect(await mirrors()).toBe(`["http://10.255.255.1:5000/","${own}/"]`);
      expect(await checkOf('docker')).toMatchObject({
        status: 'failure',
        seen: expect.stringContaining('asks http://10.255.255.1:5000/ before') as string,
      });
      expect(await driftOf('docker')).toMatchObject({
        changes: [{ kind: 'file', target: '/etc/docker/daemon.json' }, { kind: 'service' }],
      });
      expect((await configureHost(client, ids.docker)).job).toMatchObject({ state: 'succeeded', error: null });
      expect(await mirrors()).toBe(`["${own}/","http://10.255.255.1:5000/"]`);
      expect(await checkOf('docker')).toMatchObject({ status: 'pass' });
      await out('docker', `printf '%s\\n' '${before}' >/etc/docker/daemon.json`);
      await restart('docker');
    });

    it.each(['docker', 'containerd'] as const)(
      'a proxy that %s has in its environment takes no pull that is ours',
      async (name) => {
        const defaults = `/etc/default/${name}`;
        await out(name, `touch ${defaults} && cp ${defaults} ${defaults}.old`);
        // Nobody is there.
        await out(
          name,
          `echo 'export HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9 ALL_PROXY=http://127.0.0.1:9' >>${defaults}`,
        );
        await restart(name);
        const pid = name === 'docker' ? '$(cat /var/run/docker.pid)' : '$(pgrep -o -x containerd)';
        expect(await out(name, `tr '\\0' '\\n' <"/proc/${pid}/environ" | grep -c _PROXY=`)).toBe('3');
        const reference = local('b/real-and-larger:1');
        expect((await configureHost(client, ids[name])).job).toMatchObject({ state: 'succeeded', error: null });
        expect((await checkHost(client, ids[name], [reference])).result).toMatchObject({
          pulls: [{ reference, error: null }],
        });
        await out(name, `mv ${defaults}.old ${defaults}`);
        await restart(name);
      },
    );
  });

  it('the daemon.json of others keeps every byte that is not ours', async () => {
    await configureHost(client, ids.docker, { action: 'unconfigure' });
    for (const text of [
      '{\r\n\t"shutdown-timeout" : 15, "max-concurrent-uploads":5,\r\n\t"default-ulimits": {"core": {"Name": "core", "Hard": 9223372036854775807, "Soft": 9223372036854775807}}\r\n}\r\n',
      '{ "registry-mirrors": ["https://mirror.site"] }',
      '{"labels":["a=\\u00e9"],"labels":["b=1e3"]}',
    ]) {
      await out(
        'docker',
        `echo ${Buffer.from(text).toString('base64')} | base64 -d >/etc/docker/daemon.json && service docker restart`,
      );
      const state = await out('docker', 'sha256sum /etc/docker/daemon.json');
      expect((await configureHost(client, ids.docker)).job).toMatchObject({ state: 'succeeded', error: null });
      const merged = await out('docker', 'cat /etc/docker/daemon.json');
      expect(merged).toContain(`http://127.0.0.1:${du.registryPort}`);
      if (text.includes('9223372036854775807')) expect(merged).toContain(text.slice(0, text.lastIndexOf('\r\n}')));
      await restartBy('docker');
      // Somebody else changes it; what comes back is theirs.
      expect((await configureHost(client, ids.docker, { action: 'unconfigure' })).job).toMatchObject({
        state: 'succeeded',
        error: null,
      });
      expect(await out('docker', 'sha256sum /etc/docker/daemon.json')).toBe(state);
    }
    await out('docker', `printf '{\\n  "debug": false,\\n}\\n' >/etc/docker/daemon.json`);
    const { job } = await configureHost(client, ids.docker);
    expect(job).toMatchObject({
      state: 'failed',
      error: { code: 'host_file_refused', detail: expect.stringContaining('line 3') as string },
    });
    await out('docker', 'rm /etc/docker/daemon.json && docker info');
    expect((await configureHost(client, ids.docker)).job).toMatchObject({ state: 'succeeded', error: null });
  });
  const restartBy = (name: 'docker') =>
    out(name, `service ${name} restart && docker info --format '{{json .RegistryConfig.Mirrors}}' | grep -q 127.0.0.1`);

  it('packages of the site are not filtered out by modules of the distribution', async () => {
    // A module whose default stream has a package of this name, as container-tools of Red Hat 8 has those of Docker.
    const stream = join(folder.path, 'appstream');
    await mkdir(stream);
    await makeRpm(stream, 'lab-other');
    await addYumMetadata(stream);
    const modules = join(folder.path, 'modules.yaml');
    const module = [
      'document: modulemd',
      'version: 2',
      'data:',
      '  name: lab-tools',
      '  stream: "1"',
      '  version: 1',
      '  context: c0ffee00',
      '  arch: noarch',
      '  summary: s',
      '  description: d',
    ];
    const rest = [
      '  license: {module: [MIT]}',
      '  dependencies: [{requires: {platform: [el8]}}]',
      '  artifacts: {rpms: ["lab-agent-0:0.5-1.noarch"]}',
      '...',
    ];
    await writeFile(modules, `---\n${[...module, ...rest].join('\n')}\n`);
    await appendFile(
      modules,
      '---\ndocument: modulemd-defaults\nversion: 1\ndata:\n  module: lab-tools\n  stream: "1"\n...\n',
    );
    await run('modifyrepo_c', ['--mdtype=modules', modules, join(stream, 'repodata')]);
    await hosts.dnf.copyIn(stream, '/srv/appstream');
    await out(
      'dnf',
      `mkdir -p /etc/yum.repos.d; printf '%s\\n' '[appstream]' 'name=a' 'baseurl=file:///srv/appstream' 'gpgcheck=0' >/etc/yum.repos.d/appstream.repo && dnf -y module enable lab-tools:1`,
    );
    const { job, result } = await configureHost(client, ids.dnf);
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(statuses(result)).toMatchObject({ repositories: 'done' });
    expect(await out('dnf', 'rpm -q lab-agent')).toBe('lab-agent-1.0-1.noarch');
    // What it would be without the setting.
    await out('dnf', 'rpm --erase lab-agent');
    const { exitCode, stdout, stderr } = await hosts.dnf.exec(
      `dnf -y --disablerepo='*' --enablerepo='airdock-*' --setopt='airdock-el.module_hotfixes=0' install lab-agent`,
    );
    expect([exitCode, stdout + stderr]).toEqual([1, expect.stringContaining('modular filtering')]);
  });
});
