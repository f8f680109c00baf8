/**
 * Packages and container runtimes of hosts: installed from the DU through the tunnel, merged into what is there, and
 * put back when they fail.
 */
import { execFile } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createHostConfiguration, listPackageRepositories } from '@airdock/clients/generated/sdk.gen';
import type { CreateHostConfiguration } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { HostOptions, LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import {
  addAptMetadata,
  addYumMetadata,
  copyDockerPackages,
  makeDeb,
  makeRpm,
} from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import {
  configureHost,
  out as outOf,
  planOf,
  registerHost,
  stateOf as stateOfHost,
  statuses,
  tunnelOf,
  wrongPulls,
} from '../support/hosts.js';
import { success } from '../support/jobs.js';
import { endWithLab } from '../support/lab-ends.js';
import { digestAt } from '../support/registry.js';

const images = ['k8s.gcr.io/pause:3.2', 'docker.io/library/nginx:1.25'];
const rocky = 'ID=rocky\nVERSION_ID=9.4\nID_LIKE="rhel centos fedora"\nPRETTY_NAME="Rocky Linux 9.4"';
const started = await startLab();
if (!started.lab) process.stderr.write(`host packages: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('host packages', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let bundleId: string;
  const hosts = {} as Record<'bare' | 'docker' | 'dnf' | 'containerd', LabHost>;
  const ids = {} as Record<keyof typeof hosts, string>;
  /** Before Airdock came. */
  const untouched = new Map<keyof typeof hosts, string>();

  beforeAll(async () => {
    folder = await tempDir('host-packages');
    const [apt, yum, empty] = ['apt', 'yum', 'empty'].map((name) => join(folder.path, name)) as [
      string,
      string,
      string,
    ];
    await mkdir(empty);
    await copyDockerPackages(apt);
    await Promise.all([makeDeb(apt, 'lab-agent'), makeRpm(yum, 'lab-agent'), makeDeb(empty, 'lab-forgotten')]);
    await Promise.all([addAptMetadata(apt), addYumMetadata(yum)]);
    const packages = {
      repositories: [
        { name: 'release', format: 'apt', folder: apt },
        { name: 'release-el', format: 'yum', folder: yum },
        { name: 'forgotten', format: 'apt', folder: empty, distributions: ['sid'] },
      ],
      install: { debian: ['lab-agent'], redhat: ['lab-agent'] },
      docker: { debian: ['docker.io'] },
    };
    const options: Record<keyof typeof hosts, HostOptions> = {
      bare: { withDocker: false },
      docker: {},
      dnf: { osRelease: rocky },
      containerd: { withContainerd: true },
    };
    const starts = Object.entries(options).map(async ([name, option]) => {
      hosts[name as keyof typeof hosts] = await lab.startHost({ name, ...option });
    });
    [du] = await Promise.all([Du.start({ folder: folder.path, packages }), ...starts]);
    for (const name of ['bare', 'dnf'] as const) untouched.set(name, await stateOf(name));
    client = await du.client();
    for (const [name, host] of Object.entries(hosts))
      ids[name as keyof typeof hosts] = await registerHost(client, host, {
        name,
        credential: { username: 'admin', privateKey: host.privateKey },
      });
    bundleId = await carryIn(client, du, { images });
    await push(client, bundleId);
  });
  endWithLab(lab, () => ({ du, folder }));

  const configure = (name: keyof typeof hosts, options: Partial<CreateHostConfiguration> = {}) =>
    configureHost(client, ids[name], { bundleIds: [bundleId], ...options });
  const out = (name: keyof typeof hosts, command: string) => outOf(hosts[name], command);
  const stateOf = (name: keyof typeof hosts) => stateOfHost(hosts[name]);

  /** The second run does nothing, and says so. */
  async function isSettled(name: keyof typeof hosts, options: Partial<CreateHostConfiguration> = {}) {
    const before = await stateOf(name);
    const { job, result } = await configure(name, options);
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(planOf(result)).toEqual([]);
    expect(statuses(result)).toMatchObject({
      tunnel: 'unchanged',
      repositories: 'unchanged',
      runtime: 'unchanged',
      images: 'unchanged',
    });
    expect(await stateOf(name)).toBe(before);
  }

  /** The host pulls anew, and has what the registry holds. */
  const pulls = async (name: keyof typeof hosts, references: string[]) =>
    expect(await wrongPulls(client, du.registryPort, ids[name], references)).toEqual([]);
  const local = () => [`localhost:${du.registryPort}/pause:3.2`, `localhost:${du.registryPort}/library/nginx:1.25`];

  it('are listed with what is wrong with them', async () => {
    const { data } = await listPackageRepositories({ client, throwOnError: true });
    expect(data.items.map(({ name, state }) => [name, state])).toEqual([
      ['release', 'ready'],
      ['release-el', 'ready'],
      ['forgotten', 'metadata_missing'],
    ]);
    expect(data.items[2]).toMatchObject({
      detail: expect.stringContaining('1 packages') as string,
      nextStep: expect.stringContaining('apt-ftparchive') as string,
    });
    expect(data.items[0]?.url).toBe(`http://127.0.0.1:${du.packagePort}/release`);
  });

  describe('on a Debian host without Docker', () => {
    it('are planned by a dry run, which changes nothing', async () => {
      const before = await stateOf('bare');
      const { job, result } = await configure('bare', { dryRun: true });
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(statuses(result)).toEqual({
        check: 'done',
        tunnel: 'planned',
        repositories: 'planned',
        runtime: 'planned',
        images: 'planned',
      });
      expect(planOf(result)).toEqual(
        expect.arrayContaining([
          'file create /etc/apt/sources.list.d/airdock.list',
          'package install lab-agent',
          'package install docker.io',
          'service start docker',
          'file create /etc/docker/daemon.json',
        ]),
      );
      const list = result.steps.flatMap(({ changes }) => changes).find(({ target }) => target.endsWith('airdock.list'));
      expect(list?.diff).toContain(
        `+deb [signed-by=/etc/apt/keyrings/airdock.asc] http://127.0.0.1:${du.packagePort}/release ./\n`,
      );
      expect(await stateOf('bare')).toBe(before);
    });

    it('are installed through the tunnel, Docker with them, which then pulls', async () => {
      // An upstream that cannot be reached, as on every air-gapped host.
      await out('bare', 'echo "deb http://127.0.0.1:9/debian bookworm main" >/etc/apt/sources.list');
      const { job, result } = await configure('bare');
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(statuses(result)).toEqual({
        check: 'done',
        tunnel: 'done',
        repositories: 'done',
        runtime: 'done',
        images: 'done',
        verify: 'done',
      });
      expect(await out('bare', 'cat /usr/share/lab-agent')).toBe('from an apt repository');
      expect(await out('bare', 'docker version --format "{{.Server.Version}}"')).toMatch(/^\d+\./);
      expect(await out('bare', 'head -n 1 /etc/apt/sources.list.d/airdock.list')).toMatch(/^# Written by Airdock/);
      await out('bare', 'docker image prune --all --force');
      await pulls('bare', local());
      await out('bare', 'docker image prune --all --force');
      // By its upstream name, since Docker asks its mirror for it.
      await out('bare', 'docker pull --quiet nginx:1.25 && docker image rm nginx:1.25');
      await success(
        client,
        createHostConfiguration({ client, body: { hostIds: [ids.bare], bundleIds: [bundleId] }, throwOnError: true }),
      );
    });

    it('are left as they are by a second run', () => isSettled('bare'));

    it('come through a way that leads to nothing else', async () => {
      const status = (url: string, options = '') =>
        out('bare', `curl -s -o /dev/null -w '%{http_code}' ${options} '${url}' || true`);
      const packages = `http://127.0.0.1:${du.packagePort}`;
      expect(await status(`${packages}/release/Packages`)).toBe('200');
      expect(await status(`${packages}/release/Packages`, '-r 0-9')).toBe('206');
      expect(await status(`${packages}/release/`)).toBe('404');
      for (const path of [
        '/release/../images.tar',
        '/release/%2e%2e/airctl-config.yaml',
        '/..%2fairctl-config.yaml',
        '/nothing/Packages',
      ])
        expect(await status(`${packages}${path}`, '--path-as-is')).toMatch(/^40[034]$/);
      for (const method of ['PUT', 'POST', 'DELETE'])
        expect(await status(`${packages}/release/Packages`, `-X ${method} -d x`)).toBe('405');
      const registry = `http://127.0.0.1:${du.registryPort}/v2/pause`;
      expect(await status(`${registry}/manifests/3.2`, '-I')).toBe('200');
      expect(await status(`${registry}/blobs/uploads/`, '-X POST')).toBe('405');
      expect(await status(`${registry}/manifests/3.2`, '-X DELETE')).toBe('405');
      // Refused at the host's own end: nothing listens there, and the DU's addresses answer nothing but its loopback.
      const bridge = await out(
        'bare',
        "ip -4 addr show scope global | sed -n 's/.* inet \\([0-9.]*\\)\\.[0-9]*\\/.*/\\1.1/p' | head -n 1",
      );
      for (const address of ['127.0.0.1', bridge])
        expect(await status(`http://${address}:${new URL(du.url).port}/v1/hosts`, '-m 3')).toBe('000');
      expect(await status(`http://${bridge}:${du.registryPort}/v2/`, '-m 3')).toBe('000');
    });
  });

  it('are left alone with skipYumRepoInstall', async () => {
    const apt = () => out('docker', 'find /etc/apt -type f -exec sha256sum {} + | sort');
    const before = await apt();
    const { job, result } = await configure('docker', { skipYumRepoInstall: true, skipDockerImgImport: true });
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(statuses(result)).toMatchObject({ repositories: 'skipped', images: 'skipped', verify: 'done' });
    expect(await apt()).toBe(before);
    expect((await hosts.docker.exec('dpkg -s lab-agent')).exitCode).not.toBe(0);
  });

  it('are installed with dnf on a host of the Red Hat family', async () => {
    const { job, result } = await configure('dnf');
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(planOf(result)).toEqual(
      expect.arrayContaining(['file create /etc/yum.repos.d/airdock.repo', 'package install lab-agent']),
    );
    expect(await out('dnf', 'rpm -q lab-agent && cat /usr/share/lab-agent')).toBe(
      'lab-agent-1.0-1.noarch\nfrom a yum repository',
    );
    await isSettled('dnf');
  });

  it.each(['bare', 'dnf'] as const)(
    'are not taken from a local user of the host who answers in place of the DU (H9): %s',
    async (name) => {
      const port = du.packagePort;
      const evil = join(folder.path, `evil-${name}`);
      const isDebian = name === 'bare';
      await (isDebian ? makeDeb(evil, 'lab-evil') : makeRpm(evil, 'lab-evil'));
      await (isDebian ? addAptMetadata(evil) : addYumMetadata(evil));
      if (isDebian)
        await writeFile(join(evil, 'Release'), (await promisify(execFile)('apt-ftparchive', ['release', evil])).stdout);
      const repository = isDebian ? 'release' : 'release-el';
      await hosts[name].copyIn(evil, `/home/guest/${repository}`);
      // He waits until the tunnel breaks, and has the port before it is back.
      const serve = `cd /home/guest && until python3 -m http.server --bind 127.0.0.1 ${port}; do sleep 0.02; done`;
      await out(
        name,
        `setsid su guest -s /bin/sh -c '${serve}' >/dev/null 2>&1 & sleep 0.2; pkill -f '[s]shd: admin' || true`,
      );
      const page = () => out(name, `curl -s http://127.0.0.1:${port}/${repository}/ || true`);
      await waitFor(async () => (await page()).includes('lab-evil'), { what: 'the local user to have the port' });
      const install = isDebian
        ? `apt-get update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/airdock.list -o Dir::Etc::sourceparts=-; apt-get install -y lab-evil`
        : `dnf -y --disablerepo='*' --enablerepo='airdock-*' --setopt='airdock-release-el.skip_if_unavailable=0' --refresh install lab-evil`;
      const { exitCode, stdout, stderr } = await hosts[name].exec(`${install} 2>&1`, { timeoutMs: 120_000 });
      expect([exitCode === 0, `${stdout}${stderr}`], name).toEqual([
        false,
        expect.stringMatching(/not signed|signature|GPG/i),
      ]);
      expect((await hosts[name].exec('ls /usr/share/lab-evil')).exitCode).not.toBe(0);
      await out(name, `pkill -u guest; rm -rf /home/guest/${repository}`);
      await waitFor(async () => (await tunnelOf(client, ids[name]))?.state === 'up', {
        what: 'the tunnel to be back',
        timeoutMs: 30_000,
      });
    },
  );

  describe("Docker's own configuration", () => {
    const daemonJson = '/etc/docker/daemon.json';
    const own = '{\n    "log-level": "warn",\n    "registry-mirrors": ["https://mirror.site"]\n}\n';

    it('is merged: other keys stay, the old file is kept once, and Docker goes on running', async () => {
      await out(
        'docker',
        `printf '%s' '${own}' >${daemonJson}; chmod 640 ${daemonJson}; rm -f ${daemonJson}.airdock-*; service docker restart`,
      );
      const pid = await out('docker', 'pidof dockerd');
      const { result } = await configure('docker');
      expect(planOf(result)).toEqual(expect.arrayContaining([`file change ${daemonJson}`, 'service reload docker']));
      expect(JSON.parse(await out('docker', `cat ${daemonJson}`))).toEqual({
        'log-level': 'warn',
        'registry-mirrors': [`http://127.0.0.1:${du.registryPort}`, 'https://mirror.site'],
      });
      expect(await out('docker', `stat -c %a ${daemonJson}; cat ${daemonJson}.airdock-before`)).toBe(
        `640\n${own.trim()}`,
      );
      expect(await out('docker', 'pidof dockerd')).toBe(pid);
      await isSettled('docker');
    });

    it('is not touched when it is no JSON', async () => {
      await out('docker', `echo '{ oops' >${daemonJson}`);
      const before = await stateOf('docker');
      const { job } = await configure('docker');
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'host_file_refused', detail: expect.stringContaining('not valid JSON') as string },
      });
      expect(await stateOf('docker')).toBe(before);
    });

    it('comes back when Docker does not start with the new one', async () => {
      // dockerd refuses what is said on its command line and in the file.
      await out('docker', `printf '%s' '{"debug": false}' >${daemonJson}; rm ${daemonJson}.airdock-before`);
      await out(
        'docker',
        `echo 'OPTS="$OPTS --registry-mirror=https://mirror.site"' >>/etc/default/docker; service docker restart`,
      );
      const before = await stateOf('docker');
      const { job, result } = await configure('docker');
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'host_runtime_failed', isRunning: true, file: daemonJson },
      });
      expect(result.error?.detail).toMatch(
        /did not start with the new .*; the old file is back, and docker runs with it again/s,
      );
      expect(await out('docker', 'docker info --format "{{.ServerVersion}}"')).toMatch(/^\d/);
      expect(await stateOf('docker')).toBe(before);
    });
  });

  describe('on a containerd host', () => {
    it('nothing is changed by a dry run', async () => {
      const before = await stateOf('containerd');
      const { job, result } = await configure('containerd', { dryRun: true });
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(planOf(result)).toEqual(
        expect.arrayContaining([
          'file change /etc/containerd/config.toml',
          'file create /etc/containerd/certs.d/k8s.gcr.io/hosts.toml',
          'service restart containerd',
        ]),
      );
      expect(await stateOf('containerd')).toBe(before);
    });

    it('containerd is configured, its cache is warmed, and it pulls by local and by upstream names', async () => {
      await out('containerd', "sed -i '1i # of the site' /etc/containerd/config.toml");
      const old = await out('containerd', 'cat /etc/containerd/config.toml');
      const { job, result } = await configure('containerd');
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(statuses(result)).toMatchObject({ runtime: 'done', images: 'done', verify: 'done' });
      const config = await out('containerd', 'cat /etc/containerd/config.toml');
      expect(config.startsWith(old)).toBe(true);
      expect(await out('containerd', 'cat /etc/containerd/config.toml.airdock-before')).toBe(old);
      expect(await out('containerd', 'containerd config dump')).toContain('config_path = "/etc/containerd/certs.d"');
      await isSettled('containerd');
      const ctr = 'ctr --namespace k8s.io images';
      await out('containerd', `${ctr} remove --sync $(${ctr} list --quiet)`);
      await pulls('containerd', local());
      // Through hosts.toml to the name below the upstream; there is no other way on this host.
      await out(
        'containerd',
        `${ctr} pull --hosts-dir /etc/containerd/certs.d ${images.join(` && ${ctr} pull --hosts-dir /etc/containerd/certs.d `)}`,
      );
      expect(await out('containerd', `${ctr} list 'name==${images[0]}'`)).toContain(
        await digestAt(du.registryPort, 'pause:3.2'),
      );
    });

    it('the old configuration comes back when containerd does not start with the new one', async () => {
      const config = '/etc/containerd/config.toml';
      await out('containerd', `mv ${config}.airdock-before ${config}; service containerd restart`);
      await out(
        'containerd',
        `cp /etc/init.d/containerd /root/; printf '#!/bin/sh\\ngrep -q config_path ${config} && { echo refused; exit 1; }\\nexec /root/containerd "$@"\\n' >/etc/init.d/containerd`,
      );
      const before = await stateOf('containerd');
      const { job } = await configure('containerd');
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'host_runtime_failed', isRunning: true, detail: expect.stringContaining('refused') as string },
      });
      expect(await stateOf('containerd')).toBe(before);
      expect(await out('containerd', 'ctr version >/dev/null && echo up')).toBe('up');
    });
  });

  describe('unconfigured', () => {
    const unconfigure = (name: keyof typeof hosts, dryRun = false) =>
      configure(name, { action: 'unconfigure', bundleIds: [], dryRun });

    it.each(['bare', 'dnf'] as const)('%s is as it was before', async (name) => {
      const before = await stateOf(name);
      const { result: planned } = await unconfigure(name, true);
      expect(await stateOf(name)).toBe(before);
      const { job, result } = await unconfigure(name);
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(result.warnings).toEqual([]);
      expect(planOf(result)).toEqual(planOf(planned));
      // Docker leaves something of its own in /etc, and takes the scripts of the lab along.
      if (name === 'bare')
        expect(await out(name, "dpkg -l; find /etc -name '*airdock*'")).toBe(
          untouched.get(name)?.slice(untouched.get(name)?.indexOf('Desired=')),
        );
      else expect(await stateOf(name)).toBe(untouched.get(name));
      expect(await tunnelOf(client, ids[name])).toBeUndefined();
      expect(planOf((await unconfigure(name)).result)).toEqual([]);
    });

    it('containerd is as it was before', async () => {
      await out('containerd', 'mv /root/containerd /etc/init.d/containerd');
      expect((await unconfigure('containerd')).job).toMatchObject({ state: 'succeeded', error: null });
      const before = await stateOf('containerd');
      expect(planOf((await configure('containerd')).result).length).toBeGreaterThan(3);
      expect(await stateOf('containerd')).not.toBe(before);
      expect((await unconfigure('containerd')).job).toMatchObject({ state: 'succeeded', error: null });
      expect(await stateOf('containerd')).toBe(before);
      expect(await out('containerd', 'ctr -n k8s.io images ls -q')).not.toContain('localhost:');
    });

    it('keeps what others have changed in a file since', async () => {
      const daemonJson = '/etc/docker/daemon.json';
      await out('docker', `sed -i '/registry-mirror/d' /etc/default/docker; rm -f ${daemonJson}.airdock-*`);
      await out('docker', `echo '{"registry-mirrors":["https://mirror.site"]}' >${daemonJson}; service docker restart`);
      expect((await configure('docker')).job).toMatchObject({ state: 'succeeded', error: null });
      await out('docker', `sed -i '0,/{/s//{ "shutdown-timeout": 17,/' ${daemonJson}`);
      expect((await unconfigure('docker')).job).toMatchObject({ state: 'succeeded', error: null });
      expect(JSON.parse(await out('docker', `cat ${daemonJson}`))).toEqual({
        'shutdown-timeout': 17,
        'registry-mirrors': ['https://mirror.site'],
      });
      expect(await out('docker', 'docker info --format "{{json .RegistryConfig.Mirrors}}"')).toBe(
        '["https://mirror.site/"]',
      );
      expect(await out('docker', 'ls /etc/docker/*airdock* 2>/dev/null || true; docker image ls --quiet')).toBe('');
    });
  });
});
