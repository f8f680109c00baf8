import { Readable } from 'node:stream';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import { digestOf } from '@airdock/core/oci/digest';
import { mediaTypes } from '@airdock/core/oci/manifest';
import type { HostAdditions } from '@airdock/host/work/host-work';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { loadConfig } from '@airdock/platform/config';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { startJsonServer, startRegistry } from '@airdock/testing/servers';
import type { Repository } from 'typeorm';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ConfigurationOptions, type Host } from '../host/host.schema.js';
import type { HostService } from '../host/host.service.js';
import { HostImageService } from '../host-image/host-image.service.js';
import { HostProbe } from '../host-probe/host-probe.service.js';
import { PullProof } from '../host-probe/pull-proof.service.js';
import type { PackageRepositoryService } from '../package-repository/package-repository.service.js';
import type { TunnelEntity } from '../tunnel/tunnel.entity.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import { ConfigureHost } from './configure-host.service.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';

/** An image of the registry, as image-svc tells of it. */
interface PushedImage {
  names: string[];
  localReferences: string[];
  digest: string;
  imageIds: string[];
  platforms: string[];
  zstdPlatforms: string[];
  bundleId: string;
}

/** Pushes an image without layers. */
async function push(url: string, name: string): Promise<PushedImage> {
  await using client = new RegistryClient(url);
  const content = Buffer.from(
    JSON.stringify({ architecture: 'amd64', os: 'linux', author: name, rootfs: { type: 'layers', diff_ids: [] } }),
  );
  const config = { mediaType: mediaTypes.ociConfig, digest: digestOf(content), size: content.byteLength };
  await client.uploadBlob(name, config, { size: content.byteLength, open: () => Readable.from([content]) });
  const manifest = { schemaVersion: 2, mediaType: mediaTypes.ociManifest, config, layers: [] };
  const digest = await client.putManifest(name, '1', Buffer.from(JSON.stringify(manifest)), mediaTypes.ociManifest);
  return {
    names: [`k8s.gcr.io/${name}:1`],
    localReferences: [`localhost:5100/${name}:1`],
    digest,
    imageIds: [config.digest],
    platforms: ['linux/amd64'],
    zstdPlatforms: [],
    bundleId: name,
  };
}
const byDigest = ({ localReferences: [name = ''], digest }: PushedImage): string =>
  `${name.replace(/:1$/, '')}@${digest}`;

const daemonJson = '/etc/docker/daemon.json';
const aptList = '/etc/apt/sources.list.d/airdock.list';

// What the steps do is tested on real hosts, see test/e2e. Here it is their order, and what is known when one fails.
describe('ConfigureHost', () => {
  let images: Awaited<ReturnType<typeof startRegistry>>;
  let pause: PushedImage;
  let other: PushedImage;
  /** What only the bundle has. */
  let coredns: PushedImage;
  /** What the host pulls to prove that it pulls. */
  let proof: string;
  let host: ScriptedHost;
  let server: Awaited<ReturnType<typeof startJsonServer>>;
  /** How often registry-svc was asked. */
  let asked: number;
  /** Words of the test, in the order in which things happened: commands that change the host, and what is stored. */
  let events: string[];
  let registry: Record<string, unknown>;
  let catalogue: PushedImage[];
  let tunnel: TunnelEntity | undefined;
  let saved: ConfigurationOptions | undefined;
  let result: HostConfigurationResult;
  let cancel: AbortController;
  /** Called before the tunnel is opened. */
  let onTunnel: () => void;

  const row = { id: 'host', name: 'node-1', configuration: null, facts: null } as unknown as Host;

  async function configure(
    change: {
      dryRun?: boolean;
      bundleIds?: string[];
      options?: Partial<ConfigurationOptions>;
      row?: Partial<Host>;
    } = {},
  ): Promise<string | undefined> {
    const { dryRun = false, bundleIds = [], options = {} } = change;
    result = { steps: [], warnings: [], error: null };
    const configuration = { dryRun, bundleIds, options: ConfigurationOptions.parse(options) };
    return service()
      .run({ ...row, ...change.row }, configuration, result, cancel.signal)
      .then(
        () => undefined,
        (error: AppError) => error.code ?? String(error),
      );
  }

  function service(): ConfigureHost {
    const file = '/dev/null';
    const repositories = [{ name: 'site', format: 'apt', folder: '/srv/site' }];
    const packages = { repositories, install: { debian: ['chrony'] } };
    const config = loadConfig({ environment: {}, file, overrides: { dataDir: '/tmp/none', packages } });
    const endpoint = { url: server.url };
    const clients = new ServiceClients(
      { registry: endpoint, image: endpoint, host: endpoint, cluster: endpoint, backup: endpoint },
      () => 'token',
    );
    const hosts = {
      connect: async () => host.connection as unknown as SshConnection,
      remember: async (_: string, { packages: names = [], images = [] }: Partial<HostAdditions>) => {
        events.push(`remember ${[...names, ...images].join(' ')}`);
      },
      saveFacts: async () => undefined,
      saveConfigured: async (_: string, options: ConfigurationOptions) => {
        saved = options;
      },
    } as unknown as HostService;
    // The rows, and the supervisor, which opens a tunnel as soon as it is wanted.
    const rows = {
      findOneBy: async () => tunnel ?? null,
      insert: async (wanted: TunnelEntity) => {
        onTunnel();
        events.push(`tunnel to ${wanted.hostEnd}`);
        tunnel = { ...wanted, state: 'up' };
      },
    } as unknown as Repository<TunnelEntity>;
    const tunnels = new TunnelService(config, rows, clients);
    const probe = new HostProbe(config, hosts, tunnels, clients);
    const hostImages = new HostImageService(clients);
    const repository = {
      baseUrl: 'http://127.0.0.1:5101',
      key: async () => ({ publicKey: 'the key\n' }),
    } as unknown as PackageRepositoryService;
    return new ConfigureHost(
      config,
      hosts,
      probe,
      new PullProof(probe, hostImages),
      tunnels,
      repository,
      hostImages,
      clients,
    );
  }

  const steps = () => result.steps.map(({ name, status }) => `${name} ${status}`);

  beforeAll(async () => {
    images = await startRegistry();
    [pause, other] = [await push(images.url, 'pause'), await push(images.url, 'other')];
    coredns = {
      ...pause,
      names: ['k8s.gcr.io/coredns:1'],
      localReferences: ['localhost:5100/coredns:1'],
      imageIds: ['b'],
    };
    proof = byDigest(pause);
  });
  afterAll(() => images?.stop());
  beforeEach(async () => {
    asked = 0;
    events = [];
    cancel = new AbortController();
    tunnel = undefined;
    saved = undefined;
    onTunnel = () => undefined;
    catalogue = [pause];
    host = new ScriptedHost((change) => events.push(change));
    for (const { localReferences, digest, imageIds } of [pause, other]) {
      const served = { digest, id: imageIds[0] ?? '' };
      for (const reference of [localReferences[0] ?? '', byDigest({ ...pause, localReferences, digest })])
        host.registry.set(reference, served);
    }
    const sockets = { readWrite: images.url, readOnly: images.url };
    const health = { readOnlyOk: true };
    registry = {
      mode: 'local',
      url: images.url,
      address: images.url,
      sockets,
      health,
      error: null,
      storageError: null,
    };
    server = await startJsonServer({
      '/v1/registry': () => {
        asked += 1;
        return registry;
      },
      '/v1/images': () => ({ items: catalogue }),
      '/v1/bundles/bundle': () => ({ id: 'bundle', name: 'bundle.tar', images: [pause, coredns] }),
      '/v1/bundles/bundle/docker-archive': () => ({ 'localhost:5100/coredns:1': 'b' }),
    });
  });
  afterEach(() => server.stop());

  it('takes the steps in their order, and remembers what it adds before it adds it', async () => {
    expect(await configure({ options: { containerRuntime: 'docker' } })).toBeUndefined();
    expect(steps()).toEqual([
      'check done',
      'tunnel done',
      'repositories done',
      'runtime done',
      'images skipped',
      'verify done',
    ]);
    expect(events).toEqual([
      'write /etc/tmpfiles.d/airdock.conf',
      'write /etc/systemd/system/airdock-registry.socket',
      'write /etc/systemd/system/airdock-registry.service',
      'write /etc/systemd/system/airdock-packages.socket',
      'write /etc/systemd/system/airdock-packages.service',
      'units enable airdock-registry.socket airdock-packages.socket',
      'tunnel to socket',
      'units start airdock-registry',
      'units start airdock-packages',
      'write /etc/apt/keyrings/airdock.asc',
      `write ${aptList}`,
      'apt-get update',
      'remember chrony',
      'apt-get install chrony',
      'remember chrony',
      `write ${daemonJson}`,
      'docker reload',
      `settle ${daemonJson}`,
      `remember ${proof}`,
      `docker pull ${proof}`,
    ]);
    expect(saved).toMatchObject({ containerRuntime: 'docker' });
  });

  it('asks for the registry once', async () => {
    expect(await configure({ bundleIds: ['bundle'] })).toBeUndefined();
    expect(steps()).toContain('images done');
    expect(steps()).toContain('verify done');
    expect(events).toContain('docker pull localhost:5100/pause:1');
    expect(events).toContain('docker load --quiet');
    expect(asked).toBe(1);
  });

  it('changes nothing on a host that is as it should be', async () => {
    await configure();
    const { hostPort, packagePort } = tunnel as TunnelEntity;
    host.held.set('registry', hostPort).set('packages', packagePort as number);
    host.changes.length = 0;
    expect(await configure({ row: { configuration: saved as Host['configuration'] } })).toBeUndefined();
    expect(host.changes).toEqual([`docker pull ${proof}`]);
    expect(steps()).not.toContain('runtime done');
  });

  it('changes and stores nothing in a dry run, and says what it would do', async () => {
    const before = new Map(host.files);
    expect(await configure({ dryRun: true, bundleIds: ['bundle'] })).toBeUndefined();
    expect([host.changes, events, saved]).toEqual([[], [], undefined]);
    expect(host.files).toEqual(before);
    expect(steps()).toEqual([
      'check done',
      'tunnel planned',
      'repositories planned',
      'runtime planned',
      'images planned',
    ]);
    const targets = result.steps.flatMap(({ changes }) => changes.map(({ target }) => target));
    expect(targets).toEqual(expect.arrayContaining([daemonJson, aptList, 'chrony', 'localhost:5100/pause:1']));
  });

  it('tells what was done before a step that fails, and nothing after it', async () => {
    host.answer = (change) =>
      change.startsWith('apt-get install') ? { exitCode: 100, stdout: 'E: Unable to locate package' } : undefined;
    expect(await configure()).toBe('host_packages_failed');
    expect(steps()).toEqual(['check done', 'tunnel done']);
    expect(events.at(-1)).toBe('remember ');
    expect(events).toContain('remember chrony');
    expect(host.files.has(daemonJson)).toBe(false);
    expect(saved).toBeUndefined();
  });

  it('puts the old configuration of a runtime back that does not start with the new one', async () => {
    host.files.set(daemonJson, '{"debug": true}\n');
    host.takesReload = false;
    host.answer = (change) =>
      change.startsWith('service restart') ? { exitCode: 1, stdout: 'docker.service failed' } : undefined;
    expect(await configure()).toBe('host_runtime_failed');
    expect(steps()).toEqual(['check done', 'tunnel done', 'repositories done']);
    expect(host.files.get(daemonJson)).toBe('{"debug": true}\n');
    expect(host.files.has(`${daemonJson}.airdock-before`)).toBe(false);
  });

  it('ends with the reason of a cancellation, wherever that comes', async () => {
    onTunnel = () => cancel.abort(new AppError('job_cancelled'));
    expect(await configure()).toBe('job_cancelled');
    expect(steps()).toEqual(['check done']);
    expect(host.files.has(aptList)).toBe(false);

    cancel = new AbortController();
    onTunnel = () => undefined;
    host.answer = (change) => {
      if (change.startsWith('docker pull')) cancel.abort(new AppError('job_cancelled'));
      return undefined;
    };
    expect(await configure()).toBe('job_cancelled');
    expect(steps()).not.toContain('verify done');
    expect(saved).toBeUndefined();
  });

  it.each([
    ['host_port_taken', () => host.listening.add(5100)],
    [
      'host_check_failed',
      () => {
        host.diskFreeKiB = 1;
      },
    ],
  ])('changes nothing on a host with %s', async (code, break_) => {
    break_();
    expect(await configure()).toBe(code);
    expect([result.steps, host.changes]).toEqual([[], []]);
  });

  it('has nothing of a tunnel where the registry is external, or there is none', async () => {
    registry = { ...registry, mode: 'external', sockets: null };
    expect(await configure()).toBeUndefined();
    expect(steps().slice(0, 3)).toEqual(['check done', 'tunnel skipped', 'repositories skipped']);
    expect(result.steps[1]?.detail).toContain('external');
    registry = { ...registry, mode: 'none', url: null, address: null };
    expect(await configure()).toBeUndefined();
    expect(result.steps[1]?.detail).toContain('privateRegistryType is none');
    expect(host.changes).toEqual([]);
    expect(saved).toMatchObject({ containerRuntime: 'docker' });
  });

  it('refuses to plan over a registry that does not answer', async () => {
    registry = { ...registry, health: { readOnlyOk: false } };
    host.registryStatus = '000';
    expect(await configure({ dryRun: true })).toBeUndefined();
    tunnel = { state: 'up', hostPort: 5100, hostEnd: 'socket', since: 'then' } as TunnelEntity;
    // The tunnel goes down while it is waited for.
    host.answer = (change) => {
      if (change.includes('unset http_proxy')) tunnel = { ...(tunnel as TunnelEntity), state: 'down' };
      return undefined;
    };
    expect(await configure({ dryRun: true })).toBe('registry_unavailable');
  });

  describe('proves that the host pulls', () => {
    beforeEach(() => {
      catalogue = [pause, other];
    });

    it('by another image where one cannot be pulled, with a warning', async () => {
      host.registry.delete(proof);
      expect(await configure()).toBeUndefined();
      expect(result.steps.at(-1)).toMatchObject({ name: 'verify', detail: `the host pulled ${byDigest(other)}` });
      expect(result.warnings.join('\n')).toContain('not pulled, though another image was');
    });

    it('and fails with why the first could not be pulled where none could', async () => {
      host.registry.clear();
      expect(await configure()).toBe('host_pull_failed');
      expect(saved).toBeUndefined();
    });

    it('and fails where the host gets something else than the registry has', async () => {
      host.registry.set(proof, { digest: other.digest, id: '' });
      catalogue = [pause];
      expect(await configure()).toBe('host_pull_failed');
    });

    it('not by an image that has left the registry', async () => {
      catalogue = [{ ...pause, digest: `sha256:${'0'.repeat(64)}` }];
      expect(await configure()).toBeUndefined();
      expect(result.steps.at(-1)).toMatchObject({ name: 'verify', status: 'skipped' });
      catalogue = [];
      expect(await configure()).toBeUndefined();
      expect(result.steps.at(-1)?.detail).toContain('the catalogue has no image that runs on linux/amd64 yet');
    });
  });
});
