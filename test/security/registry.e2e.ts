/** What a local user of the DU without rights can do to the registry that all hosts pull from. */
import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { getRegistry, listPackageRepositories } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { localPushPasswordFile } from '@airdock/registry/engine/local-push';
import { probeRegistry, registrySockets } from '@airdock/registry/engine/process-engine';
import { buildDockerArchive, buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { startEngine } from '@airdock/testing/lab/engine';
import { isPortFree, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { push, register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { curlAsNobody, NobodysProcess, nobody, runAsNobody } from '../support/local-user.js';
import { registryPid, registryPids } from '../support/processes.js';
import { digestAt } from '../support/registry.js';

const run = promisify(execFile);

let folder: TempDir;
let du: Du | undefined;
let client: Client;
beforeEach(async () => {
  folder = await tempDir('security');
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  await du?.stop();
  await folder?.remove();
});

async function start(options: Partial<Parameters<typeof Du.start>[0]> = {}): Promise<Du> {
  du = await Du.start({ folder: folder.path, ...options });
  client = await du.client();
  return du;
}
const registry = async () => (await getRegistry({ client, throwOnError: true })).data;

async function pushPause(target: Du): Promise<string> {
  const file = join(target.bundleDir, 'pause.tar');
  await buildOciArchive(file, [
    await makeImage({ name: 'k8s.gcr.io/pause:3.2', layers: [{ files: { a: 'honest' } }] }),
  ]);
  await push(client, await register(client, file));
  return (await digestAt(target.registryPort, 'pause:3.2')) ?? '';
}

/** A web server of nobody on a port of loopback, which answers `GET /v2/` as a registry does. */
async function squat(port: number): Promise<NobodysProcess> {
  const root = await tempDir('squat');
  await mkdir(join(root.path, 'v2'));
  await writeFile(join(root.path, 'v2/index.html'), '{}');
  await run('chmod', ['-R', 'a+rX', root.path]);
  const isAnswering = async () => (await probeRegistry(`http://127.0.0.1:${port}`)).ok;
  return NobodysProcess.start(isAnswering, 'busybox', 'httpd', '-f', '-p', `127.0.0.1:${port}`, '-h', root.path);
}

describe('a local user without rights (C2)', () => {
  it('pulls, and can neither write, overwrite nor delete, whatever he calls himself', async () => {
    const target = await start();
    const digest = await pushPause(target);
    const local = `http://localhost:${target.registryPort}/v2`;
    expect(
      (await curlAsNobody(`${local}/pause/manifests/3.2`, '-H', 'Accept: application/vnd.oci.image.manifest.v1+json'))
        .status,
    ).toBe(200);
    const attempts = [
      ['-X', 'POST', `${local}/pause/blobs/uploads/`],
      ['-X', 'POST', `${local}/pause/blobs/uploads/?mount=${digest}&from=other`],
      [
        '-X',
        'PUT',
        '--data-binary',
        '{}',
        '-H',
        'Content-Type: application/vnd.oci.image.manifest.v1+json',
        `${local}/pause/manifests/3.2`,
      ],
      ['-X', 'PATCH', `${local}/pause/blobs/uploads/00000000-0000-0000-0000-000000000000`],
      ['-X', 'DELETE', `${local}/pause/manifests/${digest}`],
      ['-X', 'POST', '-H', 'Host: evil.invalid', '-H', 'Origin: http://evil.invalid', `${local}/pause/blobs/uploads/`],
      ['-X', 'POST', '-u', 'airdock:guess', `${local}/pause/blobs/uploads/`],
      ['-X', 'POST', '-H', 'X-HTTP-Method-Override: GET', `${local}/pause/blobs/uploads/`],
    ];
    for (const options of attempts) {
      const { status, body } = await curlAsNobody(options.pop() ?? '', ...options);
      expect([status, body], options.join(' ')).toEqual([403, expect.stringContaining('airdock.registry.localPush')]);
    }
    // The registry itself: neither its sockets nor any port of it.
    for (const socket of Object.values(registrySockets(join(target.dataDir, 'run/registry')))) {
      const { code, stderr } = await runAsNobody(
        'curl',
        '-sS',
        '--unix-socket',
        socket.slice('unix:'.length),
        'http://localhost/v2/',
      );
      expect([code, stderr]).toEqual([7, expect.stringContaining('connect')]);
    }
    const pids = await registryPids(target);
    const listeners = (await run('ss', ['-Hltnp'])).stdout
      .split('\n')
      .filter((line) => pids.some((pid) => line.includes(`pid=${pid},`)));
    expect(listeners).toEqual([]);
    expect(await digestAt(target.registryPort, 'pause:3.2')).toBe(digest);
  });

  it('does not become the registry: a decoy of its processes is neither taken for it nor ended, and is named', async () => {
    const target = await start({ registry: {} });
    const digest = await pushPause(target);
    const config =
      (await readdir(join(target.dataDir, 'registry'))).find(
        (name) => name.startsWith('read-only.') && name.endsWith('.yml'),
      ) ?? '';
    const words = ['serve', join(target.dataDir, 'registry', config)];
    await using decoy = await NobodysProcess.start(async () => true, 'sh', '-c', 'while :; do sleep 1; done', ...words);
    await waitFor(async () => (await registry()).foreignProcesses.length > 0, {
      what: 'the decoy to be named',
      timeoutMs: 60_000,
    });
    expect((await registry()).foreignProcesses).toEqual([
      { kind: 'decoy', port: null, pid: decoy.pid, uid: nobody, program: expect.any(String) },
    ]);
    expect(target.output).toContain(`pid ${decoy.pid} of user ${nobody}`);
    // Also a DU that knows nothing of what it had started takes its own two, and no other.
    await target.end('SIGKILL');
    await run('sh', ['-c', `rm "${target.dataDir}"/registry/*.process`]);
    await target.startProcess();
    expect(decoy.isRunning).toBe(true);
    expect(await digestAt(target.registryPort, 'pause:3.2')).toBe(digest);
    expect((await registry()).health).toMatchObject({ ok: true, readOnlyOk: true, localhostOk: true });
    const own = async (instance: 'read-write' | 'read-only') => {
      const { stdout } = await run('pgrep', [
        '-u',
        String(process.geteuid?.()),
        '-f',
        `^docker-registry serve ${join(target.dataDir, 'registry', instance)}\\.`,
      ]);
      return stdout.trim().split('\n').length;
    };
    expect([await own('read-write'), await own('read-only')]).toEqual([1, 1]);
  });

  it('takes nothing over with a listener on the port: it is named, not adopted and not ended, and hosts do not notice', async () => {
    const target = await start();
    const digest = await pushPause(target);
    await target.stop();
    await using squatter = await squat(target.registryPort);
    await target.startProcess();
    await waitFor(async () => (await registry()).foreignProcesses.length > 0, {
      what: 'the squatter to be named',
      timeoutMs: 60_000,
    });
    const seen = await registry();
    expect(seen).toMatchObject({
      error: null,
      localhostError: { code: 'registry_port_taken', detail: expect.stringContaining(`of user ${nobody}`) },
      health: { ok: true, readOnlyOk: true, localhostOk: false },
      foreignProcesses: [
        {
          kind: 'listener',
          port: target.registryPort,
          pid: squatter.pid,
          uid: nobody,
          program: expect.stringContaining('busybox'),
        },
      ],
    });
    expect(target.output).toContain(`of user ${nobody}`);
    const ready = await fetch(`${target.url}/readyz`);
    expect([ready.status, ((await ready.json()) as { notices: object }).notices]).toEqual([
      200,
      { [`registry:localhost:${target.registryPort}`]: expect.any(String) },
    ]);
    // What tunnels lead to is the registry all the same.
    await using tunnel = await tempDir('tunnel');
    const answer = join(tunnel.path, 'answer');
    const socket = registrySockets(join(target.dataDir, 'run/registry')).readOnly.slice('unix:'.length);
    await run('curl', [
      '-sS',
      '--unix-socket',
      socket,
      '-D',
      answer,
      '-o',
      '/dev/null',
      '-I',
      '-H',
      'Accept: application/vnd.oci.image.manifest.v1+json',
      'http://localhost/v2/pause/manifests/3.2',
    ]);
    expect(await readFile(answer, 'utf8')).toContain(digest);
    expect(squatter.isRunning).toBe(true);
    await squatter[Symbol.asyncDispose]();
    await waitFor(async () => (await registry()).localhostError === null, {
      what: 'the front to have its port',
      timeoutMs: 30_000,
    });
    expect(await digestAt(target.registryPort, 'pause:3.2')).toBe(digest);
  });
});

describe('an operator', () => {
  it('pushes to localhost with the credential that Airdock made, and nobody does without it', async () => {
    const target = await start({ registry: { localPush: true } });
    const archive = join(folder.path, 'tool.tar');
    await buildDockerArchive(archive, [await makeImage({ name: 'site/tool:1', layers: [{ files: { a: 'b' } }] })]);
    const name = `localhost:${target.registryPort}/site/tool:1`;
    const auth = ['--authfile', join(folder.path, 'auth.json')];
    const copy = (...options: string[]) =>
      run('skopeo', [
        'copy',
        '--insecure-policy',
        '--dest-tls-verify=false',
        ...options,
        `docker-archive:${archive}`,
        `docker://${name}`,
      ]);
    await expect(copy()).rejects.toMatchObject({
      stderr: expect.stringMatching(/unauthorized|authentication required|log in as airdock/i),
    });
    await expect(copy('--dest-creds', 'airdock:wrong')).rejects.toMatchObject({ code: 1 });
    expect(await digestAt(target.registryPort, 'site/tool:1')).toBeUndefined();
    const password = await readFile(localPushPasswordFile(target.dataDir), 'utf8');
    const login = run('skopeo', [
      'login',
      '--tls-verify=false',
      ...auth,
      '--username',
      'airdock',
      '--password-stdin',
      `localhost:${target.registryPort}`,
    ]);
    login.child.stdin?.end(password);
    await login;
    await copy(...auth);
    const digest = await digestAt(target.registryPort, 'site/tool:1');
    expect(digest).toMatch(/^sha256:/);
    // Everybody pulls, also who has no credential and asks as Docker does: without a token first.
    await run('skopeo', [
      'copy',
      '--insecure-policy',
      '--src-tls-verify=false',
      `docker://${name}`,
      `dir:${join(folder.path, 'pulled')}`,
    ]);
    expect((await curlAsNobody(`http://localhost:${target.registryPort}/v2/site/tool/manifests/1`)).status).toBe(200);
    expect((await runAsNobody('cat', localPushPasswordFile(target.dataDir))).code).not.toBe(0);
    expect(
      (await curlAsNobody(`http://localhost:${target.registryPort}/v2/site/tool/manifests/${digest}`, '-X', 'DELETE'))
        .status,
    ).toBe(401);
    // The front goes on as it was when Airdock is killed.
    const pid = await registryPid(target, 'read-only');
    await target.end('SIGKILL');
    expect(await digestAt(target.registryPort, 'site/tool:1')).toBe(digest);
    await target.startProcess();
    expect(await registryPid(target, 'read-only')).toBe(pid);
  });
});

const started = await startEngine();
if (!started.engine) process.stderr.write(`docker push: skipped: ${started.reason}\n`);

describe.skipIf(!started.engine?.socketPath)('an operator with Docker', () => {
  afterAll(async () => started.engine?.stop());

  it('pushes to localhost once he has logged in', async () => {
    const target = await start({ registry: { localPush: true } });
    const archive = join(folder.path, 'tool.tar');
    await buildDockerArchive(archive, [
      await makeImage({ name: 'site/docker-tool:1', layers: [{ files: { a: 'b' } }] }),
    ]);
    const docker = (...args: string[]) =>
      run('docker', ['--config', join(folder.path, 'docker'), '-H', `unix://${started.engine?.socketPath}`, ...args]);
    const registry = `localhost:${target.registryPort}`;
    const name = `${registry}/site/docker-tool:1`;
    try {
      await docker('load', '--quiet', '--input', archive);
      await docker('tag', 'site/docker-tool:1', name);
      await expect(docker('push', '--quiet', name)).rejects.toMatchObject({
        stderr: expect.stringMatching(/unauthorized|no basic auth|log in as airdock/i),
      });
      const login = docker('login', '--username', 'airdock', '--password-stdin', registry);
      login.child.stdin?.end(await readFile(localPushPasswordFile(target.dataDir), 'utf8'));
      await login;
      await docker('push', '--quiet', name);
      expect(await digestAt(target.registryPort, 'site/docker-tool:1')).toMatch(/^sha256:/);
      await docker('image', 'rm', '--force', name, 'site/docker-tool:1');
      await docker('pull', '--quiet', name);
    } finally {
      await docker('image', 'rm', '--force', name, 'site/docker-tool:1');
    }
  });
});

describe('the package server (C4)', () => {
  it('has no port on the DU that somebody else could have', async () => {
    const packages = join(folder.path, 'packages');
    await mkdir(packages, { recursive: true });
    await writeFile(join(packages, 'Packages'), 'Package: honest\n');
    const target = await start({ packages: { repositories: [{ name: 'site', format: 'apt', folder: packages }] } });
    expect(await isPortFree(target.packagePort)).toBe(true);
    await using squatter = await squat(target.packagePort);
    const state = async () => (await listPackageRepositories({ client, throwOnError: true })).data.items[0]?.state;
    await waitFor(async () => (await state()) === 'ready', { what: 'the packages to be served' });
    const [socket = ''] = await readdir(join(target.dataDir, 'run/packages'));
    const path = join(target.dataDir, 'run/packages', socket);
    const get = ['-sS', '--unix-socket', path, 'http://localhost/site/Packages'];
    expect((await run('curl', get)).stdout).toBe('Package: honest\n');
    expect((await runAsNobody('curl', ...get)).code).toBe(7);
    expect(squatter.isRunning).toBe(true);
  });
});
