/**
 * Hosts that cannot be used, the options of configure-hosts, and tunnels that come back: on real hosts with a real sshd
 * and Docker.
 */
import { generateKeyPairSync } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { getBundle, getHost } from '@airdock/clients/generated/sdk.gen';
import type { CreateHostConfiguration, Problem } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { freePort, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import {
  checkHost,
  configureHost,
  dockerNames,
  registerHost,
  statuses,
  tunnelOf,
  wrongPulls,
} from '../support/hosts.js';
import { endWithLab } from '../support/lab-ends.js';

const names = ['k8s.gcr.io/pause:3.2', 'quay.io/coreos/flannel:v0.14.0'];
const started = await startLab();
if (!started.lab) process.stderr.write(`hosts: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('hosts', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let host: LabHost;
  let bundleId: string;
  let printed = '';

  beforeAll(async () => {
    folder = await tempDir('hosts');
    const onOutput = (text: string) => {
      printed += text;
    };
    [du, host] = await Promise.all([Du.start({ folder: folder.path, logLevel: 'debug', onOutput }), lab.startHost()]);
    client = await du.client();
    bundleId = await carryIn(client, du, { images: names, layerBytes: 200_000 });
    await push(client, bundleId);
  });
  endWithLab(lab, () => ({ du, folder }));

  const configure = (hostId: string, options: Partial<CreateHostConfiguration> = {}) =>
    configureHost(client, hostId, { bundleIds: [bundleId], ...options });

  describe('that cannot be used', () => {
    /** Both ways of using the host must say so, in the job and for the host, soon. */
    async function fails(hostId: string, code: string, nextStep: RegExp): Promise<Problem> {
      const start = performance.now();
      const { job, result } = await configure(hostId);
      expect(performance.now() - start).toBeLessThan(15_000);
      expect(job.state).toBe('failed');
      expect(job.error).toMatchObject({ code, type: `urn:airdock:problem:${code}` });
      expect(job.error?.nextStep).toMatch(nextStep);
      expect(result.error).toMatchObject({ code });
      expect((await getHost({ client, path: { id: hostId }, throwOnError: true })).data.configuredAt).toBeNull();
      return job.error as Problem;
    }
    async function cannotBeChecked(hostId: string, code: string) {
      const { job, result } = await checkHost(client, hostId);
      expect(job).toMatchObject({ state: 'failed', error: { code } });
      expect(result).toMatchObject({ ok: false, error: { code } });
    }

    it('because they refuse the connection', async () => {
      const hostId = await registerHost(client, host, { address: '127.0.0.1', port: await freePort() });
      const problem = await fails(hostId, 'host_unreachable', /address, port and firewall/);
      expect(problem.detail).toContain('ECONNREFUSED');
      await cannotBeChecked(hostId, 'host_unreachable');
    });

    it('because they show another key than the pinned one', async () => {
      const pinned = `SHA256:${Buffer.alloc(32, 7).toString('base64').replace(/=+$/, '')}`;
      const hostId = await registerHost(client, host, { hostKey: pinned });
      const problem = await fails(hostId, 'host_key_mismatch', /compare the fingerprint on its console/);
      expect(problem.detail).toContain(pinned);
      expect(problem.detail).toContain(host.hostKeyFingerprint);
      await cannotBeChecked(hostId, 'host_key_mismatch');
    });

    it('because they do not know the key of the credential', async () => {
      const { privateKey } = generateKeyPairSync('rsa', {
        modulusLength: 2048,
        publicKeyEncoding: { type: 'pkcs1', format: 'pem' },
        privateKeyEncoding: { type: 'pkcs1', format: 'pem' },
      });
      const hostId = await registerHost(client, host, { credential: { privateKey } });
      await fails(hostId, 'host_auth_failed', /authorized_keys/);
      await cannotBeChecked(hostId, 'host_auth_failed');
    });

    it('because the user may not use sudo', async () => {
      const hostId = await registerHost(client, host, {
        credential: { username: 'guest', privateKey: host.privateKey },
      });
      await fails(hostId, 'host_sudo_failed', /sudo without password/);
      await cannotBeChecked(hostId, 'host_sudo_failed');
    });

    it('because another program listens on the registry port', async () => {
      await using occupied = await lab.startHost({ occupyPort: du.registryPort });
      const hostId = await registerHost(client, occupied);
      await fails(hostId, 'host_port_taken', /ss -ltnp/);
      const { job, result } = await checkHost(client, hostId);
      expect(job).toMatchObject({ state: 'succeeded', result: { ok: false } });
      expect(result?.checks.find(({ name }) => name === `port ${du.registryPort}`)).toMatchObject({
        status: 'failure',
        nextStep: expect.stringContaining('ss -ltnp') as string,
      });
    });

    it('because they have no Docker', async () => {
      await using bare = await lab.startHost({ withDocker: false });
      await fails(await registerHost(client, bare), 'host_runtime_missing', /Install Docker/);
    });
  });

  describe('configured by a user with sudo', () => {
    let hostId: string;
    const localNames = names.map((name) => name.slice(name.indexOf('/') + 1));

    it('are not changed by a dry run', async () => {
      hostId = await registerHost(client, host, { credential: { username: 'admin', privateKey: host.privateKey } });
      const { job, result } = await configure(hostId, { dryRun: true });
      expect(job.state).toBe('succeeded');
      expect(statuses(result)).toEqual({
        check: 'done',
        repositories: 'skipped',
        runtime: 'planned',
        tunnel: 'planned',
        images: 'planned',
      });
      expect(await tunnelOf(client, hostId)).toBeUndefined();
      expect(await dockerNames(host)).toEqual([]);
      expect((await getHost({ client, path: { id: hostId }, throwOnError: true })).data.configuredAt).toBeNull();
    });

    it.each([
      ['skipDockerInstall', { skipDockerInstall: true }],
      ['skipDockerImgImport', { skipDockerImgImport: true }],
    ])(
      'get a tunnel and no images with %s, and a warning when renaming is skipped as well',
      async (option, options) => {
        const without = await configure(hostId, options);
        expect(without.job.state).toBe('succeeded');
        expect(statuses(without.result)).toMatchObject({
          images: 'skipped',
          verify: 'done',
          runtime: option === 'skipDockerInstall' ? 'skipped' : 'done',
        });
        expect(without.result.warnings.join()).not.toContain('skipImageRenaming');
        const both = await configure(hostId, { ...options, skipImageRenaming: true });
        expect(both.job.state).toBe('succeeded');
        expect(both.result.warnings.join()).toContain(`skipImageRenaming has no meaning with ${option}`);
        expect(await dockerNames(host)).toEqual([]);
        expect(await tunnelOf(client, hostId)).toMatchObject({ state: 'up', error: null });
      },
    );

    it('get images under their upstream names with skipImageRenaming', async () => {
      const { result } = await configure(hostId, { skipImageRenaming: true });
      expect(statuses(result)).toMatchObject({ tunnel: 'unchanged', images: 'done' });
      expect(await dockerNames(host)).toEqual(names);
      expect(statuses((await configure(hostId, { skipImageRenaming: true })).result)).toMatchObject({
        images: 'unchanged',
      });
    });

    it('get from the bundle only what the registry does not have', async () => {
      await host.exec('docker image prune --all --force');
      const partly = [names[0] as string, 'quay.io/partly/new:v1'];
      const partlyId = await carryIn(client, du, { name: 'partly', images: partly, layerBytes: 200_000 });
      const { result } = await configure(hostId, { bundleIds: [partlyId], skipImageRenaming: true });
      const detail = expect.stringContaining('1 pulled through the tunnel, 1 streamed from the bundle') as string;
      expect(result.steps.find(({ name }) => name === 'images')).toMatchObject({ status: 'done', detail });
      expect(await dockerNames(host)).toEqual(partly);
    });

    it('get images under their local names, while the secrets are nowhere to be seen; a second run changes nothing', async () => {
      let over = false;
      const first = configure(hostId).finally(() => {
        over = true;
      });
      let processes = '';
      while (!over)
        processes += (await host.exec('cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr "\\0" "\\n"'))
          .stdout;
      expect(statuses((await first).result)).toMatchObject({ images: 'done' });
      expect(processes).toContain('dockerd');
      expect((await secrets()).filter((secret) => processes.includes(secret))).toEqual([]);
      expect(statuses((await configure(hostId)).result)).toMatchObject({
        runtime: 'unchanged',
        tunnel: 'unchanged',
        images: 'unchanged',
      });
      const { data: bundle } = await getBundle({ client, path: { id: bundleId }, throwOnError: true });
      const local = bundle.images.flatMap(({ localReferences }) => localReferences);
      expect(await dockerNames(host)).toEqual(expect.arrayContaining(local));
      expect(local).toEqual(expect.arrayContaining(localNames.map((name) => `localhost:${du.registryPort}/${name}`)));
    });

    /** Docker pulls both images anew. */
    async function pulls() {
      await host.exec('docker image prune --all --force');
      const references = localNames.map((name) => `localhost:${du.registryPort}/${name}`);
      expect(await wrongPulls(client, du.registryPort, hostId, references)).toEqual([]);
    }
    const isUpAgain = (after: string) =>
      waitFor(
        async () => {
          const tunnel = await tunnelOf(client, hostId);
          return tunnel?.state === 'up' && tunnel.since > after ? tunnel : undefined;
        },
        { what: 'the tunnel to be up again', timeoutMs: 60_000, intervalMs: 200 },
      );

    it('get their tunnel back after a reboot', async () => {
      await pulls();
      const before = (await tunnelOf(client, hostId))?.since ?? '';
      await host.reboot();
      const tunnel = await isUpAgain(before);
      expect(tunnel.reconnects).toBeGreaterThan(0);
      await pulls();
    });

    it('get their tunnel back when the DU was killed and started again', async () => {
      const before = (await tunnelOf(client, hostId))?.since ?? '';
      await du.end('SIGKILL');
      await du.startProcess();
      await isUpAgain(before);
      await pulls();
    });
  });

  /** The lines of the private key, and the API token. */
  const secrets = async () => [
    ...host.privateKey.split('\n').filter((line) => line.length > 40 && !line.startsWith('---')),
    (await readFile(join(du.dataDir, 'admin.token'), 'utf8')).trim(),
  ];

  it('leave no secret in the log at its most talkative, nor in any file of the DU but their own', async () => {
    expect(printed).toContain('"level":20');
    const texts = new Map([['the log', printed]]);
    for (const entry of await readdir(du.dataDir, { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      if (entry.isFile() && !path.includes('/registry/storage/') && entry.name !== 'admin.token')
        texts.set(path, await readFile(path, 'latin1'));
    }
    expect([...texts.keys()].some((path) => path.endsWith('db/host.sqlite'))).toBe(true);
    const hidden = await secrets();
    expect(
      [...texts].filter(([, text]) => hidden.some((secret) => text.includes(secret))).map(([name]) => name),
    ).toEqual([]);
  });
});
