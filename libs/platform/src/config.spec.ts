import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { tempDir } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { type ConfigSources, loadConfig, serviceEndpoint } from './config.js';

async function load(text: string, sources: Omit<ConfigSources, 'file'> = {}) {
  const folder = await tempDir('config');
  try {
    const file = join(folder.path, 'airctl-config.yaml');
    await writeFile(file, text);
    return loadConfig({ environment: {}, ...sources, file });
  } finally {
    await folder.remove();
  }
}

describe('loadConfig', () => {
  it.each([
    ['', 'none'],
    ['privateRegistryType: none', 'none'],
    ['privateRegistryType: local', 'local'],
    ['privateRegistryType: docker', 'local'],
    ['privateRegistryType: off', 'none'],
    ['privateRegistryType: No', 'none'],
    ['privateRegistryType: false', 'none'],
    ['privateRegistryType:', 'none'],
    ['privateRegistryType: Local', 'local'],
    ['privateRegistryType: external\nairdock: {registry: {externalUrl: "http://images.site:5000"}}', 'external'],
  ])('reads %j as %s: none is off and anything else is on', async (text, mode) =>
    expect((await load(text)).privateRegistryType).toBe(mode),
  );

  it("leaves airctl's other keys alone and fills in defaults", async () => {
    const config = await load('duFqdn: du.site\nairdock:\n  dataDir: /srv/airdock\n');
    expect(config).toMatchObject({
      dataDir: '/srv/airdock',
      tokenFile: '/srv/airdock/admin.token',
      registry: {
        port: 5100,
        localPush: false,
        storageDir: '/srv/airdock/registry/storage',
        socketDir: '/srv/airdock/run/registry',
      },
    });
    expect(config.http.host).toBe('127.0.0.1');
  });

  it('reports every mistake at once, by key and line', async () => {
    const error = await load(
      'privateRegistryType: local\nairdock:\n  http:\n    port: 99999\n  datadir: /x\n  registry:\n    color: red\n',
    ).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(AppError);
    const { issues } = (error as AppError).details as { issues: { key: string; line: number }[] };
    expect(issues.map(({ key, line }) => `${key} ${line}`).sort()).toEqual([
      'airdock.datadir 5',
      'airdock.http.port 4',
      'airdock.registry.color 7',
    ]);
  });

  it('reads the address of PMK, which gets a password: over https, or on this machine', async () => {
    const pmk = (url: string) =>
      load(`airdock: {pmk: {url: '${url}', project: service, user: admin@site, passwordFile: /etc/airdock/pmk}}`);
    expect((await pmk('https://du.site')).pmk).toMatchObject({ url: 'https://du.site', domain: 'default' });
    expect((await pmk('http://127.0.0.1:8080')).pmk?.url).toBe('http://127.0.0.1:8080');
    await expect(pmk('http://du.site')).rejects.toMatchObject({
      code: 'configuration_invalid',
      message: expect.stringContaining('airdock.pmk.url must be https'),
    });
  });

  it('reads package repositories, and refuses names that a package list cannot hold', async () => {
    const text =
      'airdock: {packages: {repositories: [{name: docker, format: apt, folder: /srv/docker}], docker: {debian: [docker.io]}}}';
    expect((await load(text)).packages).toMatchObject({
      port: 5102,
      repositories: [{ name: 'docker', format: 'apt', folder: '/srv/docker', distributions: [], components: ['main'] }],
      install: { debian: [], redhat: [] },
      docker: { debian: ['docker.io'], redhat: [] },
      kubernetes: { debian: ['kubeadm', 'kubelet', 'kubectl'], redhat: ['kubeadm', 'kubelet', 'kubectl'] },
    });
    for (const wrong of [
      'repositories: [{name: "a b", format: apt, folder: /x}]',
      'repositories: [{name: a, format: apt, folder: /x, distributions: ["x main\\ndeb http://y"]}]',
      'repositories: [{name: a, format: yum, folder: /x, gpgKey: ../key}]',
      'repositories: [{name: a, format: yum, folder: /x}, {name: a, format: apt, folder: /y}]',
      'install: {debian: [--force-yes]}',
    ])
      expect(await load(`airdock: {packages: {${wrong}}}`).catch((error: AppError) => error.code)).toBe(
        'configuration_invalid',
      );
  });

  it('looks for drift every hour, and takes any other time but what is none', async () => {
    expect((await load('')).hosts.drift).toEqual({ everyMinutes: 60, repair: false });
    expect((await load('airdock: {hosts: {drift: {everyMinutes: 0, repair: true}}}')).hosts.drift).toEqual({
      everyMinutes: 0,
      repair: true,
    });
    for (const wrong of [
      'everyMinutes: -1',
      'everyMinutes: often',
      'everyMinutes: 50000',
      'repair: perhaps',
      'every: 5',
    ])
      expect(await load(`airdock: {hosts: {drift: {${wrong}}}}`).catch((error: AppError) => error.code)).toBe(
        'configuration_invalid',
      );
  });

  it.each([
    ['a: [1'],
    ['- a\n- b'],
    ['airdock: 5'],
    ['privateRegistryType: external'],
    ['privateRegistryType: extern'],
    ['privateRegistryType: [none]'],
  ])('refuses %j', async (text) =>
    expect(await load(text).catch((error: AppError) => error.code)).toBe('configuration_invalid'),
  );

  it('refuses a file that is named and not there', () => {
    expect(() => loadConfig({ file: '/nowhere/config.yaml', environment: {} })).toThrowError(/cannot be read/);
  });

  it('lets the environment override the file, and the command line both', async () => {
    const text = 'airdock: {dataDir: /file, http: {port: 1}}';
    const environment = {
      AIRDOCK_DATA_DIR: '/environment',
      AIRDOCK_HTTP_PORT: '2',
      AIRDOCK_IMAGE_URL: 'http://image:80',
      DATABASE_URL: 'postgres://db',
    };
    const config = await load(text, { environment, overrides: { 'http.port': 3 } });
    expect(config).toMatchObject({ dataDir: '/environment', http: { port: 3 }, databaseUrl: 'postgres://db' });
    expect(serviceEndpoint(config, 'image')).toEqual({ url: 'http://image:80' });
    expect(serviceEndpoint(config, 'host')).toEqual({ url: 'http://127.0.0.1:3' });
  });
});
