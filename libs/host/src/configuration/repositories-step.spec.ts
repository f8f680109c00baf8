import type { SshConnection } from '@airdock/ssh/connection/connection';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import type { SystemFacts } from '../system/system-facts.js';
import { ConfigurationWork, type ConfigurationWorkOptions, type SiteSettings } from './configuration-work.js';
import { configureRepositories, listPaths, unconfigureRepositories } from './repositories-step.js';

const debian: SystemFacts = {
  family: 'debian',
  distribution: 'bookworm',
  docker: { isInstalled: true, version: '20.10.24' },
  containerd: { version: undefined },
};
const redhat: SystemFacts = { ...debian, family: 'redhat', distribution: '9' };
const packages = {
  baseUrl: 'http://127.0.0.1:5101',
  key: async () => ({ publicKey: 'the key of the DU\n' }),
  vendorKey: async (name: string) => (name === 'signed' ? 'the key of a vendor\n' : undefined),
};
const repository = (name: string, format: 'apt' | 'yum', distributions: string[] = []) => ({
  name,
  format,
  distributions,
  components: ['main'],
});
const aptKey = '/etc/apt/keyrings/airdock.asc';
const vendorKey = '/etc/pki/rpm-gpg/RPM-GPG-KEY-airdock-signed';

describe('package repositories of a host', () => {
  let host: ScriptedHost;
  let site: SiteSettings;
  let remembered: string[][];
  beforeEach(() => {
    host = new ScriptedHost();
    remembered = [];
    site = {
      registry: { port: 5100 },
      naming: ['flat'],
      mirroredUpstreams: [],
      packages: {
        repositories: [repository('site', 'apt'), repository('signed', 'yum')],
        install: { debian: ['chrony'], redhat: [] },
        docker: { debian: [], redhat: [] },
      },
    };
  });
  const work = (options: Partial<ConfigurationWorkOptions> = {}) =>
    new ConfigurationWork({
      connection: host.connection as unknown as SshConnection,
      signal: new AbortController().signal,
      dryRun: false,
      onStep: () => undefined,
      onWarning: () => undefined,
      remember: async ({ packages: names = [] }) => void remembered.push(names),
      site,
      facts: debian,
      wishes: { skipYumRepoInstall: false, skipDockerInstall: false },
      hasTunnel: true,
      ...options,
    });
  const configure = (options?: Partial<ConfigurationWorkOptions>) => configureRepositories(work(options), packages);

  it('get their key before their list, and the packages of the site with what these need', async () => {
    host.dependencies.set('chrony', ['libnettle8']);
    const { status, detail, changes } = await configure();
    expect([status, detail]).toEqual(['done', `site in ${listPaths.debian}; packages chrony`]);
    expect(host.changes).toEqual([
      `write ${aptKey}`,
      `write ${listPaths.debian}`,
      'apt-get update',
      'apt-get install chrony',
    ]);
    expect(host.files.get(listPaths.debian)).toContain('http://127.0.0.1:5101/site');
    expect(changes.map(({ action, target }) => `${action} ${target}`)).toEqual([
      `create ${aptKey}`,
      `create ${listPaths.debian}`,
      'refresh http://127.0.0.1:5101/site',
      'install chrony',
    ]);
    expect(remembered).toEqual([
      ['chrony', 'libnettle8'],
      ['chrony', 'libnettle8'],
    ]);
  });

  it('are left alone when they are as they should be', async () => {
    await configure();
    host.changes.length = 0;
    expect(await configure()).toMatchObject({ status: 'unchanged', changes: [] });
    expect(host.changes).toEqual([]);
  });

  it('are read anew when a package has gone, without writing anything', async () => {
    await configure();
    host.changes.length = 0;
    host.packages.delete('chrony');
    expect((await configure()).status).toBe('done');
    expect(host.changes).toEqual(['apt-get update', 'apt-get install chrony']);
  });

  it('are only planned in a dry run', async () => {
    const { status, changes } = await configure({ dryRun: true });
    expect([status, changes.length]).toEqual(['planned', 4]);
    expect([host.changes, remembered]).toEqual([[], []]);
  });

  it('remember what came when the installation fails half way', async () => {
    host.answer = (change) => {
      if (!change.startsWith('apt-get install')) return undefined;
      host.packages.add('chrony').add('half');
      return { exitCode: 100, stdout: 'E: Sub-process returned an error' };
    };
    await expect(configure()).rejects.toMatchObject({ code: 'host_packages_failed' });
    expect(remembered).toEqual([['chrony'], ['chrony', 'half']]);
  });

  it('are no success when a package is not there after its installation', async () => {
    host.answer = (change) => (change.startsWith('apt-get install') ? '' : undefined);
    await expect(configure()).rejects.toMatchObject({
      code: 'host_packages_failed',
      details: { detail: 'chrony not there after the installation' },
    });
  });

  it('of yum have the keys of vendors too, and lose them with their list', async () => {
    const facts = { facts: redhat };
    await configure(facts);
    expect(host.files.get(vendorKey)).toBe('the key of a vendor\n');
    expect(host.files.get(listPaths.redhat)).toContain('signed');
    const { changes } = await unconfigureRepositories(work(facts), packages);
    expect(changes.map(({ action }) => action)).toEqual(['remove', 'remove', 'remove']);
    expect([...host.files.keys()]).toEqual([]);
  });

  it.each([
    ['skipYumRepoInstall', { wishes: { skipYumRepoInstall: true, skipDockerInstall: false } }],
    ['without a tunnel', { hasTunnel: false }],
    ['neither apt nor yum', { facts: { ...debian, family: undefined } }],
    ['no repository for this host (redhat 9)', { facts: redhat, site: 'apt only' }],
    ['serves no package repositories', { site: 'none' }],
  ])('are skipped, and it says why: %s', async (why, { site: kind, ...options }: Record<string, unknown>) => {
    if (kind) site.packages.repositories = kind === 'none' ? [] : [repository('site', 'apt')];
    expect(await configure(options as Partial<ConfigurationWorkOptions>)).toMatchObject({
      status: 'skipped',
      detail: expect.stringContaining(why) as string,
    });
    expect(host.changes).toEqual([]);
  });

  it('are no success where the packages of the site are for another distribution', async () => {
    site.packages.repositories = [repository('site', 'apt', ['bullseye'])];
    await expect(configure()).rejects.toMatchObject({
      code: 'host_packages_failed',
      details: { detail: 'the DU has no repository with chrony for this host (debian bookworm)' },
    });
  });

  it('are removed, and a list that is not of Airdock stays', async () => {
    await configure();
    expect(await unconfigureRepositories(work(), packages)).toMatchObject({ status: 'done', detail: listPaths.debian });
    expect([...host.files.keys()]).toEqual([]);
    host.files.set(listPaths.debian, 'deb http://example.com ./\n');
    expect(await unconfigureRepositories(work(), packages)).toMatchObject({
      status: 'unchanged',
      detail: `${listPaths.debian} is not of Airdock`,
    });
    expect(host.files.has(listPaths.debian)).toBe(true);
  });
});
