/**
 * Clusters on real hosts whose network is cut: nothing but the DU's SSH connections reaches them, and what they try
 * elsewhere is counted.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  createCluster,
  createClusterUpgrade,
  createImageSet,
  createReadinessCheck,
  createWebhookEndpoint,
  getCluster,
  getClusterDefaults,
  getClusterReadiness,
  getClusterUpgrade,
  getReadinessCheck,
  putRegistry,
} from '@airdock/clients/generated/sdk.gen';
import type { Cluster, CreateCluster, Readiness } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { startQbert } from '@airdock/testing/qbert';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { cutOff, triedElsewhere } from '../support/host-firewall.js';
import { configureHost, dockerNames, localNames, registerHost, wrongPulls } from '../support/hosts.js';
import { resourceId, success } from '../support/jobs.js';
import { startWebhookReceiver } from '../support/webhook-receiver.js';

const imagesOf = (version: string, pause: string): string[] => [
  `k8s.gcr.io/kube-apiserver:v${version}`,
  `k8s.gcr.io/pause:${pause}`,
  `docker.io/calico/node:v${version}`,
];
const [old, first, second] = ['1.19.16', '1.20.11', '1.21.14'] as const;
const images = { [old]: imagesOf(old, '3.2'), [first]: imagesOf(first, '3.2'), [second]: imagesOf(second, '3.4.1') };

const started = await startLab();
if (!started.lab) process.stderr.write(`clusters: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('clusters', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du | undefined;
  let client: Client;
  let hosts: LabHost[];
  let hostIds: string[];

  beforeAll(async () => {
    folder = await tempDir('clusters');
    hosts = await Promise.all(Array.from({ length: 3 }, () => lab.startHost()));
    await Promise.all(hosts.map((host) => cutOff(host)));
  });
  afterEach(async ({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
    await du?.stop();
    du = undefined;
    for (const host of hosts) await host.exec('docker image prune --all --force');
  });
  afterAll(async () => {
    await lab.stop();
    await folder?.remove();
  });

  async function startDu(name: string, options: Omit<Parameters<typeof Du.start>[0], 'folder'> = {}): Promise<Du> {
    du = await Du.start({
      folder: join(folder.path, name),
      ...options,
      airdock: { webhooks: { allowedHosts: ['127.0.0.0/8'] }, ...options.airdock },
    });
    client = await du.client();
    hostIds = [];
    for (const host of hosts) hostIds.push(await registerHost(client, host));
    return du;
  }

  /** A bundle with the images of a version, and the set of them. Returns the bundle's id. */
  async function carryInVersion(version: keyof typeof images): Promise<string> {
    const bundleId = await carryIn(client, du as Du, { name: version, images: images[version] });
    await createImageSet({
      client,
      body: { name: `k8s-${version}`, kubernetesVersion: version, images: images[version] },
      throwOnError: true,
    });
    return bundleId;
  }
  const configureAll = async (options: Parameters<typeof configureHost>[2] = {}) => {
    for (const { job } of await Promise.all(hostIds.map((id) => configureHost(client, id, options))))
      expect(job.error).toBeNull();
  };
  const nodes = (): CreateCluster['nodes'] =>
    hostIds.map((hostId, index) => ({ hostId, role: index === 0 ? 'controlPlane' : 'worker' }));
  const clusterOf = async (id: string): Promise<Cluster> =>
    (await getCluster({ client, path: { id }, throwOnError: true })).data;
  const create = async (body: Partial<CreateCluster>): Promise<Cluster> =>
    clusterOf(
      resourceId(
        await success(
          client,
          createCluster({
            client,
            body: { name: 'c', kubernetesVersion: first, nodes: nodes(), ...body },
            throwOnError: true,
          }),
        ),
      ),
    );
  async function checked(body: object): Promise<Readiness> {
    const job = await success(
      client,
      createReadinessCheck({ client, body: { kubernetesVersion: first, hostIds, ...body }, throwOnError: true }),
    );
    return (await getReadinessCheck({ client, path: { id: resourceId(job) }, throwOnError: true })).data
      .result as Readiness;
  }
  const expectNothingElsewhere = async () => expect(await Promise.all(hosts.map(triedElsewhere))).toEqual([0, 0, 0]);
  const expectPulls = async (registryPort: number, version: keyof typeof images) => {
    const references = localNames(registryPort, images[version]);
    for (const id of hostIds) expect(await wrongPulls(client, registryPort, id, references)).toEqual([]);
  };

  it('tell before they are created what is missing and which bundle has it, and put that right', async () => {
    await startDu('readiness');
    await configureAll({ skipDockerImgImport: true });
    const bundleId = await carryInVersion(first);
    const before = await checked({});
    expect(before).toMatchObject({
      ready: false,
      problems: [{ code: 'images_missing' }],
      hosts: [{ tunnel: 'up' }, { tunnel: 'up' }, { tunnel: 'up' }],
    });
    expect(before.missingImages.map(({ upstream, bundles }) => [upstream, bundles[0]?.id])).toEqual(
      images[first].map((name) => [name, bundleId]),
    );
    const after = await checked({ fix: true, pull: 'all' });
    expect(after).toMatchObject({
      ready: true,
      problems: [],
      missingImages: [],
      hosts: [{ pulled: 3 }, { pulled: 3 }, { pulled: 3 }],
    });
    const created = await create({});
    expect(created).toMatchObject({ state: 'ready', registryMode: { requested: 'local', effective: 'local' } });
    await expectNothingElsewhere();
  });

  it('from before the registry join it by an upgrade from 1.19 to 1.20, and show both states until then', async () => {
    const { registryPort } = await startDu('story', { privateRegistryType: 'none' });
    await using receiver = await startWebhookReceiver();
    const events = ['cluster.create.succeeded', 'cluster.upgrade.succeeded'] as const;
    const { data: endpoint } = await createWebhookEndpoint({
      client,
      body: { url: receiver.url, events: [...events] },
      throwOnError: true,
    });
    receiver.setSecret(endpoint.secret);
    const bundle119 = await carryInVersion(old);
    // Without a registry the images come to the hosts, under their upstream names.
    await configureAll({ bundleIds: [bundle119] });
    for (const host of hosts)
      expect(await dockerNames(host)).toEqual(
        expect.arrayContaining(['calico/node:v1.19.16', 'k8s.gcr.io/kube-apiserver:v1.19.16']),
      );
    const { id, ...before } = await create({ kubernetesVersion: old });
    expect(before).toMatchObject({
      state: 'ready',
      registryMode: { requested: 'none', effective: 'none' },
      fields: { k8sPrivateRegistry: '' },
    });

    await success(client, putRegistry({ client, body: { mode: 'local' }, throwOnError: true }));
    expect((await getClusterDefaults({ client, throwOnError: true })).data.fields.k8sPrivateRegistry).toBe(
      `localhost:${registryPort}`,
    );
    expect(await clusterOf(id)).toMatchObject({
      registryMode: { requested: 'local', effective: 'none' },
      fields: { k8sPrivateRegistry: '' },
      followsDefaults: false,
    });
    const refused = await createClusterUpgrade({
      client,
      path: { clusterId: id },
      body: { kubernetesVersion: first },
      throwOnError: true,
    }).catch((error: unknown) => error);
    expect(refused).toMatchObject({ code: 'cluster_not_ready' });

    await configureAll({ skipDockerImgImport: true });
    await carryInVersion(first);
    const plan = await success(
      client,
      createClusterUpgrade({
        client,
        path: { clusterId: id },
        body: { kubernetesVersion: first, dryRun: true },
        throwOnError: true,
      }),
    );
    expect(plan.result?.plan).toMatchObject({
      registryMode: { from: 'none', to: 'local' },
      problems: [],
      imagesToPush: [{}, {}, {}],
    });
    await success(
      client,
      createClusterUpgrade({ client, path: { clusterId: id }, body: { kubernetesVersion: first }, throwOnError: true }),
    );
    expect(await clusterOf(id)).toMatchObject({
      ...{
        state: 'ready',
        kubernetesVersion: first,
        registryMode: { requested: 'local', effective: 'local' },
        followsDefaults: true,
      },
      fields: { k8sPrivateRegistry: `localhost:${registryPort}`, dockerPrivateRegistry: `localhost:${registryPort}` },
    });
    // The plan alone is no event.
    const told = () => receiver.received.map(({ event, verified }) => [event.type, verified]);
    await expect.poll(told, { timeout: 120_000 }).toEqual(events.map((type) => [type, true]));
    await expectPulls(registryPort, first);
    expect((await getClusterReadiness({ client, path: { id }, throwOnError: true })).data).toMatchObject({
      ready: true,
    });
    await expectNothingElsewhere();
  });

  it('are created and upgraded by PMK, which is told of the registry in its own words', async () => {
    const versions = [`${first}-pmk.2038`, `${second}-pmk.72`] as const;
    const password = 'a password of PMK';
    const passwordFile = join(folder.path, 'pmk.password');
    await writeFile(passwordFile, `${password}\n`, { mode: 0o600 });
    await using qbert = await startQbert({
      password,
      versions: [...versions],
      nodes: hosts.map(({ address }, index) => ({ uuid: `node-${index}`, name: `agent-${index}`, primaryIp: address })),
      callsPerToken: 7,
    });
    const { registryPort } = await startDu('pmk', {
      airdock: { pmk: { url: qbert.url, project: qbert.project, user: qbert.user, passwordFile } },
    });
    await configureAll({ skipDockerImgImport: true });
    await push(client, await carryInVersion(first));
    await carryInVersion(second);
    for (const [index, version] of [first, second].entries())
      await createImageSet({
        client,
        body: { name: `pmk-${version}`, kubernetesVersion: versions[index], images: images[version] },
        throwOnError: true,
      });

    const { id } = await create({ kubernetesVersion: versions[0], provisioner: 'pmk' });
    const local = `localhost:${registryPort}`;
    const created = qbert.calls
      .filter(({ method, path }) => method === 'POST' && path.endsWith('/clusters'))
      .map(({ body }) => body);
    expect(created).toEqual([
      expect.objectContaining({
        name: 'c',
        kubeRoleVersion: versions[0],
        dockerPrivateRegistry: local,
        k8sPrivateRegistry: local,
      }),
    ]);
    await expectPulls(registryPort, first);

    const job = await success(
      client,
      createClusterUpgrade({
        client,
        path: { clusterId: id },
        body: { kubernetesVersion: versions[1] },
        throwOnError: true,
      }),
    );
    expect(job.result).toMatchObject({ to: versions[1], registryMode: 'local' });
    expect(
      (
        await getClusterUpgrade({ client, path: { clusterId: id, id: resourceId(job) }, throwOnError: true })
      ).data.nodes.map(({ state }) => state),
    ).toEqual(['done', 'done', 'done']);
    expect(qbert.logins()).toBeGreaterThan(2);
    expect(du?.output).not.toContain(password);
    await expectPulls(registryPort, second);
    await expectNothingElsewhere();
  });
});
