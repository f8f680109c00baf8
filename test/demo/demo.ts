/**
 * `bin/airdock demo`: Airdock's main job, end to end, on real parts. One line per step says what was verified, not what
 * was asked for. Without root or a Docker engine the host's part is left out, and the summary says so.
 */
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  createBackup,
  createBundle,
  createCluster,
  createHost,
  createHostCheck,
  createHostConfiguration,
  createImageSet,
  createPush,
  createRestore,
  createSshCredential,
  createWebhookEndpoint,
  getBundle,
  getClusterDefaults,
  getHostCheck,
  getHostConfiguration,
  getRegistry,
  listImages,
  putRegistry,
} from '@airdock/clients/generated/sdk.gen';
import type { Job } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { AppError, fromProblem } from '@airdock/core/errors';
import { buildDockerArchive, buildOciArchive, makeImage } from '@airdock/testing/bundles';
import type { LabHost } from '@airdock/testing/lab/host';
import { buildImages, saveImages, skopeoToOciArchive } from '@airdock/testing/lab/images';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { freePort, isPortFree, tempDir, waitFor } from '@airdock/testing/servers';
import { Du } from '../support/du.js';
import { endOfStream, resourceId, success } from '../support/jobs.js';
import { digestAt } from '../support/registry.js';
import { upload } from '../support/upload.js';
import { startWebhookReceiver } from '../support/webhook-receiver.js';

const kubernetesVersion = '1.20.11';
const savedImages = ['k8s.gcr.io/pause:3.2', 'k8s.gcr.io/kube-proxy:v1.20.11', 'docker.io/calico/node:v3.18.1'];
const ociImage = 'gcr.io/etcd-development/etcd:v3.4.14';
const allImages = [...savedImages, ociImage];

const started = performance.now();
const seconds = () => `${((performance.now() - started) / 1000).toFixed(1).padStart(5)} s`;
const say = (line: string) => void process.stdout.write(`${seconds()}  ${line}\n`);
const mib = (bytes: number) => `${(bytes / 1024 ** 2).toFixed(1)} MiB`;

function verify(holds: unknown, what: string): asserts holds {
  if (!holds) throw new Error(`not verified: ${what}`);
}

/** The call must be refused with this code. */
async function refused(call: Promise<unknown>, code: string): Promise<AppError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof AppError && error.code === code) return error;
    throw error;
  }
  throw new Error(`not verified: should have been refused with ${code}`);
}

async function choosePort(): Promise<number> {
  if (await isPortFree(5100)) return 5100;
  const port = await freePort();
  say(`port 5100 is taken on this machine; the registry gets ${port} instead`);
  return port;
}

async function verifyUp(du: Du): Promise<void> {
  const { data: registry } = await getRegistry({ client: du.localClient(), throwOnError: true });
  verify(
    registry.mode === 'local' && registry.health?.ok && registry.health.readOnlyOk,
    'both instances of the registry answer',
  );
  const push = await fetch(`http://localhost:${du.registryPort}/v2/x/blobs/uploads/`, { method: 'POST' });
  verify(push.status === 403, 'a push to localhost without a credential is refused');
  say(
    `DU up: registry ${registry.engine?.version} answers on ${registry.host}, ${mib(registry.storage?.usedBytes ?? 0)} used; a push without a credential is refused`,
  );
}

/** Two bundles, made by the tools that users have: `docker save`, and `skopeo copy … oci-archive:`. */
async function makeBundles(du: Du, lab: Lab | undefined): Promise<{ saved: string; oci: string }> {
  const saved = join(du.bundleDir, 'kubernetes.tar');
  const oci = join(du.bundleDir, 'etcd.oci.tar');
  if (lab) {
    await buildImages(
      lab.engine,
      allImages.map((name) => ({ name, layersBytes: [3_000_000] })),
    );
    await saveImages(lab.engine, savedImages, saved);
    const all = join(du.bundleDir, 'all.tar');
    await saveImages(lab.engine, [ociImage], all);
    await skopeoToOciArchive(all, ociImage, oci, ociImage);
    say(`bundles: docker save of ${savedImages.length} images that share a layer, skopeo copy to oci-archive of 1`);
    return { saved, oci };
  }
  const base = { randomBytes: 2_000_000, seed: 'base' };
  await buildDockerArchive(
    saved,
    await Promise.all(savedImages.map((name) => makeImage({ name, layers: [base, { files: { 'etc/name': name } }] }))),
  );
  await buildOciArchive(oci, [await makeImage({ name: ociImage, layers: [base] })]);
  say('bundles: written as docker save and skopeo write them, since there is no engine here to make them with');
  return { saved, oci };
}

async function pushAll(du: Du, client: Client, { saved, oci }: { saved: string; oci: string }): Promise<string[]> {
  const token = (await readFile(join(du.dataDir, 'admin.token'), 'utf8')).trim();
  const byPath = await success(client, createBundle({ client, body: { path: saved }, throwOnError: true }));
  const uploadId = await upload(du.url, token, oci);
  const byUpload = await success(client, createBundle({ client, body: { uploadId }, throwOnError: true }));
  const bundleIds = [byPath, byUpload].map(resourceId);
  for (const bundleId of bundleIds) {
    const { data: bundle } = await getBundle({ client, path: { id: bundleId }, throwOnError: true });
    const { data: job } = await createPush({ client, body: { bundleId }, throwOnError: true });
    let events = 0;
    const ended = await endOfStream(client, job.id, () => {
      events += 1;
    });
    if (ended.error) throw fromProblem(ended.error);
    for (const { digest, names, localReferences } of bundle.images) {
      for (const reference of localReferences) {
        const there = await digestAt(du.registryPort, reference.slice(reference.indexOf('/') + 1));
        verify(
          there && (digest === null || there === digest),
          `${names[0]} is in the registry as ${reference}${digest ? ' with the digest of the bundle' : ''}`,
        );
      }
    }
    const kept = bundle.images.every(({ digest }) => digest) ? ', OCI digests unchanged' : '';
    say(
      `push ${bundle.name} (${bundle.format}, ${mib(bundle.sizeBytes)}${bundle.path ? '' : ', uploaded by tus'}): ${bundle.images.length} images under all local names${kept}; ${events} progress events, none backwards`,
    );
  }
  const { data: images } = await listImages({ client, throwOnError: true });
  verify(
    allImages.every((name) => images.items.some(({ upstream }) => upstream === name)),
    'the catalogue lists every image',
  );
  say(`catalogue: ${images.items.map(({ upstream, sizeBytes }) => `${upstream} (${mib(sizeBytes)})`).join(', ')}`);
  return bundleIds;
}

interface Site {
  host: LabHost;
  hostId: string;
}

/** Lets the host's own Docker pull, after it has forgotten the images. Returns the digests it got. */
async function pullOnHost(du: Du, client: Client, { host, hostId }: Site): Promise<Map<string, string>> {
  const { data: images } = await listImages({ client, throwOnError: true });
  const references = images.items.flatMap(({ localReferences }) => localReferences.slice(0, 1));
  await host.exec('docker image prune --all --force');
  const job = await success(
    client,
    createHostCheck({ client, body: { hostIds: [hostId], pull: references }, throwOnError: true }),
  );
  const { data: check } = await getHostCheck({ client, path: { id: resourceId(job) }, throwOnError: true });
  const digests = new Map<string, string>();
  for (const { reference, digest, error } of check.results?.[0]?.pulls ?? []) {
    if (error) throw fromProblem(error);
    verify(
      digest && digest === (await digestAt(du.registryPort, reference.slice(reference.indexOf('/') + 1))),
      `the host got ${reference} with the registry's digest`,
    );
    digests.set(reference, digest);
  }
  verify(digests.size === references.length, 'the host pulled every image');
  return digests;
}

async function prepareHost(du: Du, client: Client, lab: Lab, bundleIds: string[]): Promise<Site> {
  const host = await lab.startHost();
  const { data: credential } = await createSshCredential({
    client,
    body: { name: 'demo', username: host.user, privateKey: host.privateKey },
    throwOnError: true,
  });
  verify(!JSON.stringify(credential).includes('PRIVATE'), 'the key is not returned');
  const { data: registered } = await createHost({
    client,
    body: {
      name: host.name,
      address: host.address,
      port: host.port,
      credentialId: credential.id,
      hostKey: host.hostKey,
    },
    throwOnError: true,
  });
  const site = { host, hostId: registered.id };
  const configure = () =>
    success(
      client,
      createHostConfiguration({ client, body: { hostIds: [site.hostId], bundleIds }, throwOnError: true }),
    );
  const steps = async (job: Job) =>
    (await getHostConfiguration({ client, path: { id: resourceId(job) }, throwOnError: true })).data.hosts[0]?.steps ??
    [];
  const first = await steps(await configure());
  say(`host ${host.name} configured: ${first.map(({ name, status }) => `${name} ${status}`).join(', ')}`);
  const cached = await host.exec("docker image ls --format '{{.Repository}}:{{.Tag}}'");
  verify(cached.stdout.includes(`localhost:${du.registryPort}/pause:3.2`), 'warmed images have local names');
  const second = await steps(await configure());
  verify(
    second.every(({ name, status }) => !['tunnel', 'runtime', 'images'].includes(name) || status === 'unchanged'),
    'a second run changes nothing',
  );
  say('configured again: tunnel, runtime and images unchanged');
  const digests = await pullOnHost(du, client, site);
  const run = await host.exec(`docker run --rm localhost:${du.registryPort}/pause:3.2`);
  verify(run.stdout.includes('hello from k8s.gcr.io/pause:3.2'), 'the pulled image runs on the host');
  const pushed = await host.exec(`docker push localhost:${du.registryPort}/pause:3.2`);
  verify(pushed.exitCode !== 0, 'the host cannot push');
  say(
    `the host's own Docker pulled ${digests.size} images through the tunnel with the right digests; one ran and said “${run.stdout.trim()}”; a push from the host was refused`,
  );
  return site;
}

async function createClusters(client: Client, site: Site | undefined): Promise<void> {
  const { data: defaults } = await getClusterDefaults({ client, throwOnError: true });
  const { data: registry } = await getRegistry({ client, throwOnError: true });
  verify(defaults.fields.k8sPrivateRegistry === registry.host, 'new clusters point at the local registry');
  await createImageSet({
    client,
    body: { name: 'kubernetes-1.20.11', kubernetesVersion, images: allImages },
    throwOnError: true,
  });
  const absent = 'k8s.gcr.io/coredns:1.7.0';
  await createImageSet({
    client,
    body: { name: 'kubernetes-1.21.3', kubernetesVersion: '1.21.3', images: [...allImages, absent] },
    throwOnError: true,
  });
  if (!site) {
    say(`cluster defaults: ${defaults.fields.k8sPrivateRegistry} for all four upstreams; no cluster without a host`);
    return;
  }
  const nodes = [{ hostId: site.hostId, role: 'controlPlane' as const }];
  const missing = await refused(
    createCluster({ client, body: { name: 'too-early', kubernetesVersion: '1.21.3', nodes }, throwOnError: true }),
    'images_missing',
  );
  verify(JSON.stringify(missing.details.missing) === JSON.stringify([absent]), 'exactly the missing image is named');
  await refused(
    createCluster({ client, body: { name: 'too-old', kubernetesVersion: '1.19.16', nodes }, throwOnError: true }),
    'kubernetes_version_unsupported',
  );
  const job = await success(
    client,
    createCluster({ client, body: { name: 'demo', kubernetesVersion, nodes }, throwOnError: true }),
  );
  say(
    `cluster demo (Kubernetes ${kubernetesVersion}): its host has all ${String(job.result?.imagesPerHost)} images; refused were 1.21.3, lacking ${absent}, and 1.19.16`,
  );
}

async function backUpAndRestore(du: Du, client: Client, site: Site | undefined): Promise<void> {
  await using receiver = await startWebhookReceiver();
  const { data: endpoint } = await createWebhookEndpoint({ client, body: { url: receiver.url }, throwOnError: true });
  receiver.setSecret(endpoint.secret);
  const before = site ? await pullOnHost(du, client, site) : new Map<string, string>();
  const { data: images } = await listImages({ client, throwOnError: true });
  const names = images.items.flatMap(({ localReferences }) =>
    localReferences.map((reference) => reference.slice(reference.indexOf('/') + 1)),
  );
  const digests = await Promise.all(names.map((name) => digestAt(du.registryPort, name)));

  const backup = await success(client, createBackup({ client, body: { description: 'demo' }, throwOnError: true }));
  const told = await waitFor(() => receiver.received.find(({ event }) => event.type === 'backup.create.succeeded'), {
    what: 'the webhook',
    timeoutMs: 15_000,
  });
  verify(
    told.verified && told.event.data.resource === backup.resource,
    'the event is signed with the secret and names the backup',
  );
  say(
    `backup: ${String(backup.result?.images)} names, ${mib(Number(backup.result?.sizeBytes))}; the webhook arrived and its signature holds`,
  );

  await rm(join(du.dataDir, 'registry', 'storage', 'docker'), { recursive: true });
  verify(
    (await Promise.all(names.map((name) => digestAt(du.registryPort, name)))).every((digest) => digest === undefined),
    'the registry is empty',
  );
  const restore = await success(
    client,
    createRestore({ client, body: { backupId: resourceId(backup) }, throwOnError: true }),
  );
  const after = await Promise.all(names.map((name) => digestAt(du.registryPort, name)));
  verify(
    after.every((digest, index) => digest && digest === digests[index]),
    'every name has its digest again',
  );
  say(
    `the registry's storage was deleted; the restore brought ${String(restore.result?.images)} names back with the same digests`,
  );
  if (!site) return;
  const again = await pullOnHost(du, client, site);
  verify(
    [...before].every(([reference, digest]) => again.get(reference) === digest),
    'the host pulls the same digests as before',
  );
  say(`the host pulled the same ${again.size} digests again`);
}

async function run(): Promise<string | undefined> {
  await using folder = await tempDir('demo');
  const lab = await startLab({ log: say });
  await using _lab = lab.lab;
  await using du = await Du.start({
    folder: folder.path,
    registryPort: await choosePort(),
    stopsRegistry: true,
    airdock: { webhooks: { allowedHosts: ['127.0.0.0/8'] } },
  });
  const client = du.localClient();
  try {
    await verifyUp(du);
    const bundleIds = await pushAll(du, client, await makeBundles(du, lab.lab));
    const site = lab.lab ? await prepareHost(du, client, lab.lab, bundleIds) : undefined;
    await createClusters(client, site);
    await backUpAndRestore(du, client, site);
    await success(client, putRegistry({ client, body: { mode: 'none' }, throwOnError: true }));
    await du.end();
    verify(await isPortFree(du.registryPort), 'the registry is gone');
    return lab.lab ? undefined : lab.reason;
  } catch (error) {
    process.stderr.write(`\nlast words of the DU:\n${du.output.slice(-3000)}\n`);
    throw error;
  }
}

try {
  const reason = await run();
  say(
    reason ? `done, without the host's part: ${reason}` : 'done: every step was verified, and nothing is left running',
  );
  process.exit(0);
} catch (error) {
  say(`FAILED: ${(error as Error).message}`);
  process.stderr.write(`${(error as Error).stack}\n`);
  process.exit(1);
}
