/** The registry's life in an embedded DU: off, on, dead and back, and in the way of another program. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { createBackup, createPush, getRegistry, putRegistry } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { isPortFree, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { success } from '../support/jobs.js';
import { listProcesses } from '../support/processes.js';
import { missingOf } from '../support/registry.js';

let folder: TempDir;
let du: Du | undefined;
let client: Client;
beforeEach(async () => {
  folder = await tempDir('registry-life');
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  await du?.stop();
  await folder?.remove();
});

async function start(options: { privateRegistryType?: string; registryPort?: number } = {}): Promise<Du> {
  du = await Du.start({ folder: folder.path, ...options });
  client = await du.client();
  return du;
}
const registry = async () => (await getRegistry({ client, throwOnError: true })).data;
const healthy = (after = 0) =>
  waitFor(
    async () => {
      const seen = await registry();
      return seen.health?.ok && seen.health.readOnlyOk && seen.version >= after ? seen : undefined;
    },
    { what: 'the registry to be healthy', timeoutMs: 20_000 },
  );

async function pids(dataDir: string): Promise<number[]> {
  return (await listProcesses())
    .filter(
      ({ commandLine }) =>
        commandLine.includes(` serve ${join(dataDir, 'registry')}/`) && !commandLine.startsWith('bwrap '),
    )
    .map(({ pid }) => pid);
}

describe('a registry', () => {
  it('that is off does not listen, and what needs it is refused; it is switched on and off by one request each', async () => {
    const { registryPort, bundleDir, dataDir } = await start({ privateRegistryType: 'none' });
    expect(await registry()).toMatchObject({
      mode: 'none',
      host: null,
      url: null,
      sockets: null,
      engine: null,
      health: null,
      error: null,
    });
    expect(await isPortFree(registryPort)).toBe(true);
    const file = join(bundleDir, 'image.tar');
    await buildOciArchive(file, [await makeImage({ name: 'quay.io/a/b:1', layers: [{ files: { a: 'b' } }] })]);
    const bundleId = await register(client, file);
    const off = { code: 'registry_off', status: 409 };
    await expect(createPush({ client, body: { bundleId }, throwOnError: true })).rejects.toMatchObject(off);
    await expect(createBackup({ client, body: {}, throwOnError: true })).rejects.toMatchObject(off);

    const on = await success(client, putRegistry({ client, body: { mode: 'local' }, throwOnError: true }));
    expect(on).toMatchObject({ resource: '/v1/registry', result: { mode: 'local' } });
    expect(await healthy()).toMatchObject({
      mode: 'local',
      host: `localhost:${registryPort}`,
      storage: { usedBytes: expect.any(Number) as number },
    });
    await success(client, createPush({ client, body: { bundleId }, throwOnError: true }));
    expect(await missingOf(client, registryPort, bundleId)).toEqual([]);

    await success(client, putRegistry({ client, body: { mode: 'none' }, throwOnError: true }));
    expect(await pids(dataDir)).toEqual([]);
    expect(await isPortFree(registryPort)).toBe(true);
  });

  it('is not changed by who saw an older version of it', async () => {
    const { url, dataDir } = await start();
    const { version } = await registry();
    const put = async (ifMatch: string) =>
      putRegistry({ client, body: { mode: 'local' }, headers: { 'If-Match': ifMatch }, throwOnError: true });
    await success(client, put(`"${version}"`));
    await expect(put(`"${version}"`)).rejects.toMatchObject({ code: 'resource_changed', status: 412 });
    const response = await fetch(`${url}/v1/registry`, { headers: { authorization: `Bearer ${await du?.token()}` } });
    expect(response.headers.get('etag')).toBe(`"${version + 1}"`);
    expect(await pids(dataDir)).toHaveLength(2);
  });

  it.each([0, 1])('comes back when its process is killed (%i)', async (index) => {
    const { dataDir } = await start();
    const before = await pids(dataDir);
    expect(before).toHaveLength(2);
    process.kill(before[index] as number, 'SIGKILL');
    await waitFor(async () => !(await pids(dataDir)).includes(before[index] as number), {
      what: 'the process to be gone',
    });
    await healthy();
    const after = await pids(dataDir);
    expect(after).toHaveLength(2);
    expect(after).toContain(before[1 - index]);
  });

  it('whose port another program has says so until the port is free', async () => {
    const other: Server = createServer((_request, response) => response.end('another program'));
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    try {
      const { port } = other.address() as AddressInfo;
      await start({ registryPort: port });
      const seen = await registry();
      expect(seen.localhostError).toMatchObject({
        code: 'registry_port_taken',
        port,
        nextStep: expect.stringContaining('airdock.registry.port') as string,
      });
      // Pushes and hosts do not need localhost.
      expect(seen).toMatchObject({ error: null, health: { ok: true, readOnlyOk: true, localhostOk: false } });
    } finally {
      await new Promise((resolve) => other.close(resolve));
    }
    await waitFor(async () => (await registry()).localhostError === null, {
      what: 'the front to have its port',
      timeoutMs: 20_000,
    });
  });

  it('of another DU is not taken for its own', async () => {
    const first = await start();
    await using elsewhere = await tempDir('registry-life-2');
    await using second = await Du.start({ folder: elsewhere.path, registryPort: first.registryPort });
    const { data: seen } = await getRegistry({ client: await second.client(), throwOnError: true });
    expect(seen).toMatchObject({
      localhostError: { code: 'registry_port_taken', port: first.registryPort },
      health: { ok: true, localhostOk: false },
    });
    await second.stop();
    expect(await registry()).toMatchObject({ error: null, health: { ok: true, readOnlyOk: true } });
  });
});
