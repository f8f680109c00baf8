import { spawn } from 'node:child_process';
import { chmod, mkdir, readdir, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { digestOf } from '@airdock/core/oci/digest';
import { mediaTypes } from '@airdock/core/oci/manifest';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { RegistryHttp } from '@airdock/oci/registry-client/registry-http';
import { freePort, isPortFree, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  ProcessRegistryEngine,
  probeRegistry,
  type RegistryEngineOptions,
  registrySockets,
  storageUsage,
} from './process-engine.js';

describe('ProcessRegistryEngine', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let options: RegistryEngineOptions;
  const front = () => `http://127.0.0.1:${options.front?.port}`;

  beforeEach(async () => {
    folder = await tempDir('engine');
    options = {
      stateDir: join(folder.path, 'state'),
      storageDir: join(folder.path, 'storage'),
      socketDir: join(folder.path, 'run'),
      binary: 'docker-registry',
      front: { port: await freePort(), push: null },
    };
  });
  afterEach(async () => {
    await new ProcessRegistryEngine(options).stop();
    await folder.remove();
  });

  it('runs a read-write and a read-only instance and a front on localhost, adopts them the next time, and stops all', async () => {
    expect((await new ProcessRegistryEngine(options).start()).started).toEqual(['readOnly', 'front', 'readWrite']);
    const pids = await new ProcessRegistryEngine(options).pids();
    const upload = { method: 'POST', path: '/v2/a/blobs/uploads/', headers: { 'content-length': '0' } } as const;
    const statuses = Object.values(registrySockets(options.socketDir)).map(
      async (address) => (await new RegistryHttp(address).send(upload, () => true)).status,
    );
    expect(await Promise.all(statuses)).toEqual([202, 405]);
    expect((await fetch(`${front()}/v2/a/blobs/uploads/`, { method: 'POST' })).status).toBe(403);
    const next = new ProcessRegistryEngine(options);
    expect(await next.isHealthy()).toBe(true);
    expect((await next.start()).started).toEqual([]);
    expect(await next.pids()).toEqual(pids);
    await next.stop();
    expect(await isPortFree(options.front?.port ?? 0)).toBe(true);
    expect((await probeRegistry(registrySockets(options.socketDir).readOnly)).ok).toBe(false);
    await next.stop();
  });

  it('starts again what was killed, and restarts what runs with another configuration', async () => {
    const engine = new ProcessRegistryEngine(options);
    await engine.start();
    process.kill((await engine.pids())[1] as number, 'SIGKILL');
    await waitFor(async () => !(await engine.isHealthy()), { what: 'the death to be noticed' });
    expect((await engine.start()).started).toEqual(['readOnly']);
    options = { ...options, front: { port: await freePort(), push: null } };
    expect((await new ProcessRegistryEngine(options).start()).started).toEqual(['front']);
    expect((await probeRegistry(front())).ok).toBe(true);
  });

  it('ends what a killed registry was writing before it starts it again', async () => {
    const engine = new ProcessRegistryEngine(options);
    await engine.start();
    await using registry = new RegistryClient(registrySockets(options.socketDir).readWrite);
    const index = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests: [] }));
    await registry.putManifest('app', '1', index, mediaTypes.ociIndex);
    process.kill((await engine.pids())[0] as number, 'SIGKILL');
    await waitFor(async () => !(await engine.isHealthy()), { what: 'the death to be noticed' });
    const link = 'repositories/app/_manifests/tags/1/current/link';
    await truncate(join(options.storageDir, 'docker/registry/v2', link));
    expect(await engine.start()).toMatchObject({ started: ['readWrite'], repair: { changed: [link], failed: [] } });
    expect((await registry.headManifest('app', '1'))?.digest).toBe(digestOf(index));
    // What cannot be repaired keeps it from nothing else.
    await engine.stop();
    const odd = join(options.storageDir, 'docker/registry/v2/repositories/odd');
    await mkdir(join(odd, '_layers'), { recursive: true });
    await mkdir(join(folder.path, 'elsewhere/tags'), { recursive: true });
    await symlink(join(folder.path, 'elsewhere'), join(odd, '_manifests'));
    expect((await engine.start()).repair).toEqual({
      changed: [],
      failed: [expect.stringContaining('reached through a link')],
    });
    expect((await registry.headManifest('app', '1'))?.digest).toBe(digestOf(index));
  });

  it('is started by a script too, however long that takes to become the program, and says when it ends at once', async () => {
    const program = join(folder.path, 'registry.sh');
    const script = (text: string) =>
      writeFile(program, `#!/bin/sh\n[ "$1" = --version ] && exec docker-registry --version\n${text}\n`, {
        mode: 0o755,
      });
    options = { ...options, binary: program };
    await script('exec docker-registry "$@"');
    for (let round = 0; round < 5; round++) {
      await new ProcessRegistryEngine(options).start();
      await new ProcessRegistryEngine(options).stop();
    }
    await script('exit 3');
    await expect(new ProcessRegistryEngine(options).start()).rejects.toMatchObject({
      code: 'registry_start_failed',
      details: { detail: expect.stringContaining('ended at once') },
    });
  });

  it('starts whatever a registry that was taken over has left where the next one listens, or somebody wrote over what was written down', async () => {
    const engine = new ProcessRegistryEngine(options);
    await engine.start();
    await writeFile(join(options.stateDir, 'front.process'), 'null');
    expect((await engine.start()).started).toEqual(['front']);
    await engine.stop();
    const [readWrite, readOnly] = Object.values(registrySockets(options.socketDir)).map((address) =>
      address.slice('unix:'.length),
    ) as [string, string];
    await rm(readWrite, { force: true });
    await rm(readOnly, { force: true });
    await symlink(join(folder.path, 'nothing'), readOnly);
    await mkdir(join(readWrite, 'a'), { recursive: true });
    await engine.start();
    expect(await engine.isHealthy()).toBe(true);
  });

  it('touches nothing of a storage while somebody else listens for it', async () => {
    const engine = new ProcessRegistryEngine(options);
    await engine.start();
    await engine.stop();
    const link = join(options.storageDir, 'docker/registry/v2/repositories/app/_manifests/tags/1/current/link');
    await mkdir(dirname(link), { recursive: true });
    await writeFile(link, '');
    const answers = createHttpServer((_, response) => response.end('{}'));
    const socket = registrySockets(options.socketDir).readWrite.slice('unix:'.length);
    await rm(socket, { force: true });
    const other = answers.listen(socket);
    await expect(engine.start()).rejects.toMatchObject({ code: 'registry_socket_taken' });
    expect((await stat(link)).size).toBe(0);
    await new Promise((resolve) => other.close(resolve));
  });

  it('never takes the processes of another engine for its own', async () => {
    const other = {
      ...options,
      stateDir: join(folder.path, 'other'),
      storageDir: join(folder.path, 'other-storage'),
      socketDir: join(folder.path, 'other-run'),
      front: { port: await freePort(), push: null },
    };
    const [engine, neighbour] = [new ProcessRegistryEngine(options), new ProcessRegistryEngine(other)];
    await neighbour.start();
    expect(await engine.pids()).toEqual([]);
    await engine.start();
    await engine.stop();
    expect(await neighbour.isHealthy()).toBe(true);
    await neighbour.stop();
  });

  it('lets nobody else into its storage', async () => {
    await mkdir(options.storageDir, { recursive: true });
    await chmod(options.storageDir, 0o755);
    await new ProcessRegistryEngine(options).start();
    expect((await stat(options.storageDir)).mode & 0o777).toBe(0o750);
  });

  it('says that a port is taken, or that there is no program', async () => {
    const port = options.front?.port ?? 0;
    const other = createServer().listen(port, '127.0.0.1');
    const engine = new ProcessRegistryEngine(options);
    const { started, frontError } = await engine.start();
    // Hosts need nothing on localhost.
    expect(started).toEqual(['readOnly', 'readWrite']);
    expect(frontError).toMatchObject({
      code: 'registry_port_taken',
      details: { port, detail: expect.stringContaining(`pid ${process.pid} of user`) },
    });
    expect(await engine.squatters()).toMatchObject([
      { port, pid: process.pid, uid: process.geteuid?.(), program: process.execPath },
    ]);
    expect([(await engine.pids()).length, await engine.isHealthy()]).toEqual([2, false]);
    await new Promise((resolve) => other.close(resolve));
    expect((await engine.start()).started).toEqual(['front']);
    await expect(new ProcessRegistryEngine({ ...options, binary: '/nowhere/registry' }).start()).rejects.toMatchObject({
      code: 'registry_engine_missing',
    });
  });

  it('ends what writes through it when the fence goes up, also when it was killed while it did that, and keeps the fence where the registry cannot reach it', async () => {
    const engine = new ProcessRegistryEngine({
      ...options,
      front: { port: options.front?.port ?? 0, push: { username: 'a', passwordSha256: 'b' } },
    });
    await engine.start();
    const [readWrite] = await engine.pids();
    await writeFile(join(options.stateDir, 'front/fence'), 'going up');
    expect(engine.isFenced).toBe(false);
    await engine.setFence(true);
    expect([engine.isFenced, (await engine.pids()).includes(readWrite as number)]).toEqual([true, false]);
    await engine.start();
    expect((await fetch(`${front()}/v2/a/blobs/uploads/`, { method: 'POST' })).status).toBe(503);
    expect(await readdir(options.socketDir)).not.toContain('fence');
    await engine.setFence(false);
    expect((await fetch(`${front()}/v2/a/blobs/uploads/`, { method: 'POST' })).status).toBe(401);
  });

  it('replaces a program that was changed where it lies', async () => {
    const program = join(folder.path, 'registry.sh');
    const install = (comment: string) =>
      writeFile(program, `#!/bin/sh\n# ${comment}\nexec docker-registry "$@"\n`, { mode: 0o755 });
    options = { ...options, binary: program };
    await install('one');
    await new ProcessRegistryEngine(options).start();
    expect((await new ProcessRegistryEngine(options).start()).started).toEqual([]);
    await install('two, with a fix');
    expect((await new ProcessRegistryEngine(options).start()).started).toEqual(['readOnly', 'readWrite']);
  });

  it('takes over from an Airdock that gave its processes no mark, and had the port', async () => {
    const config = join(options.stateDir, 'read-write.0123456789abcdef.yml');
    await mkdir(options.stateDir, { recursive: true, mode: 0o700 });
    const http = { addr: `127.0.0.1:${options.front?.port}` };
    await writeFile(
      config,
      JSON.stringify({ version: '0.1', storage: { filesystem: { rootdirectory: options.storageDir } }, http }),
    );
    const old = spawn('docker-registry', ['serve', config], { stdio: 'ignore', detached: true });
    const ended = new Promise((resolve) => old.once('exit', resolve));
    await waitFor(async () => (await probeRegistry(front())).ok, { what: 'the old registry to answer' });
    const { started, frontError } = await new ProcessRegistryEngine(options).start();
    expect([started, frontError]).toEqual([['readOnly', 'front', 'readWrite'], undefined]);
    await ended;
  });

  it('keeps its secrets to its owner', async () => {
    await new ProcessRegistryEngine(options).start();
    for (const name of await readdir(options.stateDir))
      expect((await stat(join(options.stateDir, name))).mode & 0o077).toBe(0);
  });

  it('measures its storage, also when that is gone', async () => {
    await new ProcessRegistryEngine(options).start();
    await writeFile(join(options.storageDir, 'blob'), Buffer.alloc(1_000_000, 1));
    expect((await storageUsage(options.storageDir)).usedBytes).toBeGreaterThanOrEqual(1_000_000);
    await rm(options.storageDir, { recursive: true });
    expect((await storageUsage(options.storageDir)).usedBytes).toBeLessThan(100_000);
  });
});
