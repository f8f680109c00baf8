import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { type Config, loadConfig } from '@airdock/platform/config';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '@airdock/platform/database';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ExternalRegistryService } from '../registry/external-registry.service.js';
import { RegistryEntity } from '../registry/registry.entity.js';
import { RegistryRowService } from '../registry/registry-row.service.js';
import { StorageService } from '../registry/storage.service.js';
import { registryMigrations } from '../registry.migrations.js';
import { RegistryEngineService, registryEngine } from './registry-engine.service.js';

describe('the fence', () => {
  let folder: TempDir;
  let config: Config;
  let databases: ServiceDatabase[];
  let rows: RegistryRowService;
  /** As two processes have it, each with a connection of its own. */
  let engines: [RegistryEngineService, RegistryEngineService];

  beforeEach(async () => {
    folder = await tempDir('fence');
    // No registry is to run: the fence is there all the same.
    const overrides = { dataDir: folder.path };
    config = loadConfig({ environment: { AIRDOCK_PRIVATE_REGISTRY_TYPE: 'none' }, file: '/dev/null', overrides });
    const targets = new OutboundTargets([], {
      code: 'registry_target_forbidden',
      key: 'airdock.registry.allowedHosts',
    });
    databases = [];
    const open = async () => {
      const dataSource = await connectDatabase(
        dataSourceOptions(config, 'registry', [RegistryEntity], registryMigrations),
      );
      databases.push(new ServiceDatabase(dataSource));
      const registries = dataSource.getRepository(RegistryEntity);
      rows = new RegistryRowService(config, registries);
      const storage = new StorageService(config, registries);
      return new RegistryEngineService(config, rows, storage, new ExternalRegistryService(config, targets));
    };
    engines = [await open(), await open()];
  });
  afterEach(async () => {
    for (const { dataSource } of databases) await dataSource.destroy();
    await folder.remove();
  });

  const isUp = () => registryEngine(config).isFenced;
  const holder = async () => (await rows.load()).fence?.upgradeId;

  it('goes up and down in the row and in the engine, as often as one upgrade asks', async () => {
    const [engine] = engines;
    for (const wanted of [true, true, false, false]) {
      await engine.setFence('a', wanted);
      expect([await holder(), isUp()]).toEqual([wanted ? 'a' : undefined, wanted]);
    }
  });

  it('keeps the time since when it is up', async () => {
    const [engine, other] = engines;
    await engine.setFence('a', true);
    const { fence, version } = await rows.load();
    await other.setFence('a', true);
    expect(await rows.load()).toMatchObject({ fence, version });
  });

  it('is raised and lowered by no other upgrade', async () => {
    const [engine, other] = engines;
    await engine.setFence('a', true);
    for (const wanted of [true, false])
      await expect(other.setFence('b', wanted)).rejects.toMatchObject({ code: 'registry_fenced' });
    expect([await holder(), isUp()]).toEqual(['a', true]);
    await engine.setFence('a', false);
    await other.setFence('b', true);
    expect(await holder()).toBe('b');
  });

  it('is had by one of two upgrades that ask at once', async () => {
    await rows.load();
    const outcomes = await Promise.allSettled([engines[0].setFence('a', true), engines[1].setFence('b', true)]);
    expect(outcomes.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected']);
    expect(outcomes.find((outcome) => outcome.status === 'rejected')?.reason).toMatchObject({
      code: 'registry_fenced',
    });
    expect([await holder(), isUp()]).toEqual([outcomes[0].status === 'fulfilled' ? 'a' : 'b', true]);
  });

  it('goes up although something else of the row was changed between the look and the write', async () => {
    const load = rows.load.bind(rows);
    let isFirst = true;
    const [, engine] = engines;
    rows.load = async () => {
      const row = await load();
      if (isFirst) {
        isFirst = false;
        await rows.want(row, { engineBinary: null });
      }
      return row;
    };
    await engine.setFence('a', true);
    expect([await holder(), isUp()]).toEqual(['a', true]);
  });
});
