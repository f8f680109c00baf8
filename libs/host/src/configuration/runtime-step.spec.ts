import type { SshConnection } from '@airdock/ssh/connection/connection';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import type { SystemFacts } from '../system/system-facts.js';
import { ConfigurationWork, type ConfigurationWorkOptions, type SiteSettings } from './configuration-work.js';
import { chooseRuntime, configureRuntime, daemonJson, unconfigureRuntime } from './runtime-step.js';

const mirror = 'http://127.0.0.1:5100';
const configToml = '/etc/containerd/config.toml';
const facts: SystemFacts = {
  family: 'debian',
  distribution: 'bookworm',
  docker: { isInstalled: true, version: '20.10.24' },
  containerd: { version: undefined },
};
const bare: SystemFacts = { ...facts, docker: { isInstalled: false, version: undefined } };
const withContainerd: SystemFacts = { ...bare, containerd: { version: '1.6.20' } };
const wishes = { skipYumRepoInstall: false, skipDockerInstall: false };

describe('the container runtime of a host', () => {
  let host: ScriptedHost;
  let site: SiteSettings;
  let remembered: string[][];
  beforeEach(() => {
    host = new ScriptedHost();
    remembered = [];
    site = {
      registry: { port: 5100 },
      naming: ['flat', 'upstream'],
      mirroredUpstreams: ['k8s.gcr.io'],
      packages: {
        repositories: [{ name: 'docker', format: 'apt', distributions: [], components: ['main'] }],
        install: { debian: [], redhat: [] },
        docker: { debian: ['docker.io'], redhat: [] },
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
      remember: async ({ packages = [] }) => void remembered.push(packages),
      site,
      facts,
      wishes,
      hasTunnel: true,
      ...options,
    });

  it.each([
    ['docker', facts, {}],
    ['docker', { ...facts, containerd: { version: '1.6.20' } }, {}],
    ['containerd', withContainerd, {}],
    ['docker', bare, {}],
    ['docker', withContainerd, { containerRuntime: 'docker' as const }],
    ['containerd', facts, { containerRuntime: 'containerd' as const }],
  ])('is %s', (name, seen, wanted) =>
    expect(chooseRuntime({ facts: seen, wishes: { ...wishes, ...wanted } })).toBe(name),
  );

  it('of others is left alone with skipDockerInstall, and has to be there', async () => {
    const skipping = { wishes: { ...wishes, skipDockerInstall: true } };
    const { runtime, ...outcome } = await configureRuntime(work(skipping));
    expect(runtime?.name).toBe('docker');
    expect(outcome).toEqual({
      status: 'skipped',
      detail: 'skipDockerInstall; docker 20.10.24 of the host',
      changes: [],
    });
    expect(host.changes).toEqual([]);
    await expect(configureRuntime(work({ ...skipping, facts: bare }))).rejects.toMatchObject({
      code: 'host_runtime_missing',
    });
  });

  describe('Docker', () => {
    it('asks the registry first, beside what its file said before', async () => {
      host.files.set(daemonJson, '{"debug": true}\n');
      const { status, detail, runtime } = await configureRuntime(work());
      expect([status, runtime?.name]).toEqual(['done', 'docker']);
      expect(detail).toBe(`Docker 20.10.24 of the host, with ${mirror} as its first mirror`);
      expect(JSON.parse(host.files.get(daemonJson) ?? '')).toEqual({ debug: true, 'registry-mirrors': [mirror] });
      expect(host.changes).toEqual([`write ${daemonJson}`, 'docker reload', `settle ${daemonJson}`]);
    });

    it('is left alone when it does so already', async () => {
      await configureRuntime(work());
      host.changes.length = 0;
      expect(await configureRuntime(work())).toMatchObject({ status: 'unchanged', changes: [] });
      expect(host.changes).toEqual([]);
    });

    it('is told again what it has not read', async () => {
      host.files.set(daemonJson, JSON.stringify({ 'registry-mirrors': [mirror] }));
      const { changes } = await configureRuntime(work());
      expect(changes.map(({ action, target }) => `${action} ${target}`)).toEqual(['reload docker']);
      expect(host.changes).toEqual(['docker reload', `settle ${daemonJson}`]);
    });

    it('is restarted where a reload is not enough', async () => {
      host.takesReload = false;
      const { changes } = await configureRuntime(work());
      expect(changes.at(-1)).toMatchObject({ kind: 'service', action: 'restart', target: 'docker' });
      expect(host.changes).toContain('service restart docker');
    });

    it('has no mirror without flat names, or without a tunnel', async () => {
      expect(await configureRuntime(work({ hasTunnel: false }))).toMatchObject({ status: 'unchanged' });
      site.naming = ['upstream'];
      expect(await configureRuntime(work())).toMatchObject({ detail: 'Docker 20.10.24 of the host' });
      expect(host.changes).toEqual([]);
    });

    it('is installed where there is none, which is remembered before', async () => {
      host.packages.delete('docker.io');
      host.dependencies.set('docker.io', ['runc']);
      const { status, detail } = await configureRuntime(work({ facts: bare }));
      expect([status, detail]).toEqual(['done', `Docker, with ${mirror} as its first mirror`]);
      expect(host.changes.slice(0, 2)).toEqual(['apt-get update', 'apt-get install docker.io']);
      expect(remembered[0]).toEqual(['docker.io', 'runc']);
    });

    it('is only planned in a dry run', async () => {
      host.packages.delete('docker.io');
      const { status, changes, runtime } = await configureRuntime(work({ facts: bare, dryRun: true }));
      expect([status, runtime]).toEqual(['planned', undefined]);
      expect(changes.map(({ action, target }) => `${action} ${target}`)).toEqual([
        'install docker.io',
        'start docker',
        `create ${daemonJson}`,
        'reload docker',
      ]);
      expect(host.changes).toEqual([]);
    });

    it.each([
      ['of no known family', { facts: { ...bare, family: undefined } }],
      ['no package repository for this host', { facts: bare, hasTunnel: false }],
      ['names no packages', { facts: { ...bare, family: 'redhat' as const } }],
    ])('cannot be installed, and it says why: %s', async (why, options) => {
      host.packages.delete('docker.io');
      await expect(configureRuntime(work(options))).rejects.toMatchObject({
        code: 'host_runtime_missing',
        details: { detail: expect.stringContaining(why) as string },
      });
      expect(host.changes).toEqual([]);
    });

    it('is no success when it reads another file', async () => {
      host.answer = (change) => (change.startsWith('docker info') ? '["https://other.example/"]' : undefined);
      host.takesReload = false;
      await expect(configureRuntime(work())).rejects.toMatchObject({ code: 'host_config_ineffective' });
    });

    it('forgets the registry, and keeps what others have changed since', async () => {
      await configureRuntime(work());
      expect(await unconfigureRuntime(work(), 'docker', true)).toMatchObject({ status: 'done' });
      expect([...host.files.keys()]).toEqual([]);
      await configureRuntime(work());
      host.files.set(daemonJson, JSON.stringify({ 'registry-mirrors': [mirror], debug: true }));
      await unconfigureRuntime(work(), 'docker', true);
      expect(JSON.parse(host.files.get(daemonJson) ?? '')).toEqual({ debug: true });
    });

    it('is neither reloaded nor restarted when it was removed itself', async () => {
      await configureRuntime(work());
      host.changes.length = 0;
      const { changes } = await unconfigureRuntime(work(), 'docker', false);
      expect(changes.map(({ target }) => target)).toEqual([daemonJson]);
      expect(host.changes).toEqual([`revert ${daemonJson}`]);
    });
  });

  describe('containerd', () => {
    const hostsToml = (upstream: string) => `/etc/containerd/certs.d/${upstream}/hosts.toml`;
    /** A file was changed after containerd had read it. */
    let isBehind: boolean;
    let cri: string;
    beforeEach(() => {
      isBehind = false;
      cri = 'ok';
      host.answer = (change, { script }) => {
        if (change === 'ctr plugins list') return `io.containerd.grpc.v1 cri linux/amd64 ${cri}\n`;
        if (change === 'service restart containerd') isBehind = false;
        if (change === `write ${configToml}`) isBehind = true;
        if (!script.includes('config dump')) return undefined;
        const file = host.files.get(configToml) ?? 'version = 2\n';
        return `# ${configToml}\n${isBehind ? `# changed=${configToml}\n` : ''}${file}`;
      };
    });
    const configure = (options: Partial<ConfigurationWorkOptions> = {}) =>
      configureRuntime(work({ facts: withContainerd, ...options }));

    it('has a file for each upstream and for the registry, and is restarted with its folder', async () => {
      const { status, detail } = await configure();
      expect([status, detail]).toEqual(['done', 'containerd 1.6.20 of the host, pulls by /etc/containerd/certs.d']);
      expect(host.changes).toEqual([
        `write ${hostsToml('k8s.gcr.io')}`,
        `write ${hostsToml('localhost:5100')}`,
        `write ${configToml}`,
        'service restart containerd',
        `settle ${configToml}`,
      ]);
      expect(host.files.get(hostsToml('k8s.gcr.io'))).toContain('http://127.0.0.1:5100/v2/k8s.gcr.io');
    });

    it('is left alone when it is as it should be, and restarted when it is behind its files', async () => {
      await configure();
      host.changes.length = 0;
      expect(await configure()).toMatchObject({ status: 'unchanged', changes: [] });
      expect(host.changes).toEqual([]);
      isBehind = true;
      expect((await configure()).changes).toMatchObject([{ kind: 'service', action: 'restart', target: 'containerd' }]);
    });

    it('is refused without its CRI plugin', async () => {
      cri = 'skip';
      await expect(configure()).rejects.toMatchObject({ code: 'host_cri_unavailable' });
      expect(host.changes).toEqual([]);
    });

    it('is only planned in a dry run, and left alone without a tunnel', async () => {
      expect(await configure({ hasTunnel: false })).toMatchObject({ status: 'unchanged' });
      const { status, changes } = await configure({ dryRun: true });
      expect([status, changes.length]).toEqual(['planned', 4]);
      expect(host.changes).toEqual([]);
    });

    it('gets its old file back', async () => {
      host.files.set(configToml, 'version = 2\nroot = "/data"\n');
      await configure();
      const outcome = await unconfigureRuntime(work({ facts: withContainerd }), 'containerd', true);
      expect(outcome.changes.at(-1)).toMatchObject({ action: 'restart', target: 'containerd' });
      expect([...host.files]).toEqual([[configToml, 'version = 2\nroot = "/data"\n']]);
    });

    it('keeps a file that others have changed since', async () => {
      host.files.set(configToml, 'version = 2\n');
      await configure();
      host.files.set(configToml, `${host.files.get(configToml)}\n[metrics]\n  address = "127.0.0.1:1338"\n`);
      await expect(unconfigureRuntime(work({ facts: withContainerd }), 'containerd', true)).rejects.toMatchObject({
        code: 'host_file_refused',
      });
    });
  });
});
