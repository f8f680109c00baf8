import { setHostsDir } from '@airdock/core/container-runtime/containerd-config';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import { KubeadmHost } from './kubeadm-host.js';
import { installNodePackages, packagesToInstall } from './node-packages.js';
import { NodeWork, type NodeWorkOptions } from './node-work.js';
import { revertPauseImage, setKubeletPauseImage, setPauseImage } from './pause-image.js';

const configToml = '/etc/containerd/config.toml';
const flags = '/var/lib/kubelet/kubeadm-flags.env';
const pause = 'localhost:5100/pause:3.5';

let host: ScriptedHost;
let warnings: string[];
let remembered: string[][];
beforeEach(() => {
  host = new ScriptedHost();
  warnings = [];
  remembered = [];
});
const work = (options: Partial<NodeWorkOptions> = {}) => {
  const signal = new AbortController().signal;
  const node = new KubeadmHost(host.connection as unknown as SshConnection, signal, 'node-1', 'containerd');
  return new NodeWork({
    host: node,
    controlPlane: node,
    family: 'debian',
    packages: ['kubeadm', 'kubelet', 'cri-tools'],
    dryRun: false,
    onStep: () => undefined,
    onWarning: (warning) => warnings.push(warning),
    remember: async ({ packages = [] }) => void remembered.push(packages),
    ...options,
  });
};

describe('the pause image of containerd', () => {
  beforeEach(() => {
    host.answer = (change) =>
      change === 'ctr plugins list' ? 'io.containerd.grpc.v1 cri linux/amd64 ok\n' : undefined;
  });

  it('is set in its file, for which it is restarted, once', async () => {
    const changes = await setPauseImage(work(), pause);
    expect(changes.map(({ action, target }) => `${action} ${target}`)).toEqual([
      `change ${configToml}`,
      'restart containerd',
    ]);
    expect(host.files.get(configToml)).toContain(`sandbox_image = "${pause}"`);
    expect(await setPauseImage(work(), pause)).toEqual([]);
    expect(host.changes).toEqual([`write ${configToml}`, 'service restart containerd', `settle ${configToml}`]);
  });

  it('is made known when a run before did not come to it', async () => {
    await setPauseImage(work(), pause);
    host.files.set(`${configToml}.airdock-pending`, '');
    expect(await setPauseImage(work(), pause)).toHaveLength(2);
    expect(host.changes.at(-1)).toBe(`settle ${configToml}`);
  });

  it('is only planned in a dry run', async () => {
    expect(await setPauseImage(work({ dryRun: true }), pause)).toHaveLength(2);
    expect(host.changes).toEqual([]);
  });

  it('is reverted to what configuring the host has written', async () => {
    const configured = setHostsDir('version = 2\n', 1).text;
    host.files.set(configToml, configured).set(`${configToml}.airdock-before`, 'version = 2\n');
    await setPauseImage(work(), pause);
    expect(host.files.get(configToml)).not.toBe(configured);
    expect(await revertPauseImage(work())).toHaveLength(2);
    expect(host.files.get(configToml)).toBe(configured);
    expect(warnings).toEqual([]);
  });

  it('stays with a warning in a file that others have changed since', async () => {
    await setPauseImage(work(), pause);
    host.files.set(configToml, `${host.files.get(configToml)}\n[debug]\n  level = "info"\n`);
    expect(await revertPauseImage(work())).toEqual([]);
    expect(warnings).toEqual([`${configToml} was changed after Airdock did, and keeps ${pause} as its pause image`]);
  });

  it('is left alone where Airdock has written nothing', async () => {
    expect(await revertPauseImage(work())).toEqual([]);
    host.files.set(configToml, `version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "${pause}"\n`);
    expect(await revertPauseImage(work())).toEqual([]);
    expect([host.changes, warnings]).toEqual([[], []]);
  });
});

describe('the pause image of a kubelet with Docker', () => {
  it('is exchanged in the file that kubeadm wrote, and nowhere else', async () => {
    expect(await setKubeletPauseImage(work(), pause)).toEqual([]);
    host.files.set(flags, 'ARGS="--network-plugin=cni"\n');
    expect(await setKubeletPauseImage(work(), pause)).toEqual([]);
    host.files.set(flags, 'ARGS="--pod-infra-container-image=k8s.gcr.io/pause:3.2"\n');
    expect(await setKubeletPauseImage(work({ dryRun: true }), pause)).toHaveLength(1);
    expect(host.changes).toEqual([]);
    expect(await setKubeletPauseImage(work(), pause)).toMatchObject([{ action: 'change', target: flags }]);
    expect(host.files.get(flags)).toBe(`ARGS="--pod-infra-container-image=${pause}"\n`);
  });
});

describe('the packages of a node', () => {
  let versions: Record<string, string>;
  let offered: string[];
  const all = () => true;
  beforeEach(() => {
    versions = { kubeadm: '1.20.11-00', 'cri-tools': '1.13.0-01' };
    offered = ['1.21.0-00', '1.20.11-01'];
    host.answer = (change, { argv, script }) => {
      if (change.includes('madison')) return offered.map((one) => `${argv.at(-1)} | ${one} | site\n`).join('');
      if (script.includes('${Version}'))
        return Object.entries(versions)
          .map(([name, version]) => `installed ${name} ${version}\n`)
          .join('');
      if (!change.startsWith('apt-get install')) return undefined;
      for (const one of change.split(' ').slice(2)) {
        const [name = '', version = '1'] = one.split('=');
        versions[name] = version;
        host.packages.add(name);
      }
      return '';
    };
  });

  it('are those that are not there, or in another version of Kubernetes', async () => {
    expect(await packagesToInstall(work(), '1.20.11')).toEqual(['kubelet']);
    expect(await packagesToInstall(work(), '1.21.0')).toEqual(['kubeadm', 'kubelet']);
    delete versions['cri-tools'];
    expect(await packagesToInstall(work(), '1.20.11-pmk.2038')).toEqual(['kubelet', 'cri-tools']);
    await expect(packagesToInstall(work({ family: undefined }), '1.20.11')).rejects.toMatchObject({
      code: 'host_packages_failed',
    });
  });

  it('come in exactly the version, are remembered before, and are held', async () => {
    const changes = await installNodePackages(work(), '1.20.11', all);
    expect(changes.map(({ target }) => target)).toEqual(['kubelet 1.20.11-01']);
    expect(host.changes).toEqual(['apt-get update', 'apt-get install kubelet=1.20.11-01', 'apt-mark hold kubelet']);
    expect(remembered).toEqual([['kubelet'], ['kubelet']]);
    expect(await installNodePackages(work(), '1.20.11', all)).toEqual([]);
  });

  it('come only as far as they are meant', async () => {
    const changes = await installNodePackages(work(), '1.21.0', (name) => name === 'kubeadm');
    expect(changes.map(({ target }) => target)).toEqual(['kubeadm 1.21.0-00']);
  });

  it('are not installed in another version, of which it tells which there are', async () => {
    await expect(installNodePackages(work(), '1.22.0', all)).rejects.toMatchObject({
      code: 'host_packages_failed',
      details: { offered, detail: expect.stringContaining('of kubeadm there is 1.21.0-00, 1.20.11-01') as string },
    });
    expect(host.changes).toEqual(['apt-get update']);
  });

  it('are only planned in a dry run', async () => {
    expect(await installNodePackages(work({ dryRun: true }), '1.20.11', all)).toHaveLength(1);
    expect([host.changes, remembered]).toEqual([[], []]);
  });
});
