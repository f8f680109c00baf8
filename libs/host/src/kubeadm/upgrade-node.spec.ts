import type { AppError } from '@airdock/core/errors';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import type { HostStep } from '../work/host-work.js';
import { KubeadmHost } from './kubeadm-host.js';
import { type NodeStepName, NodeWork, type NodeWorkOptions } from './node-work.js';
import { type Upgrade, upgradeNode } from './upgrade-node.js';

const cluster = {
  kubernetesVersion: '1.20.11',
  imageRepository: 'localhost:5100',
  podSubnet: '10.20.0.0/16',
  serviceSubnet: '10.21.0.0/16',
  pauseImage: 'localhost:5100/pause:3.5',
};
const flags = '/var/lib/kubelet/kubeadm-flags.env';
const packages = ['kubeadm', 'kubelet', 'kubectl'];

// From 1.20.11 to 1.21.14, with Docker.
describe('an upgrade of a node', () => {
  let host: ScriptedHost;
  /** Versions of the packages. */
  let installed: Record<string, string>;
  let offered: string[];
  let node: { version: string; cordoned?: boolean; annotations?: Record<string, string>; ready?: boolean } | undefined;
  let clusterVersion: string;
  let imageRepository: string;
  let apiServer: string;
  let commands: string[];
  let steps: HostStep<NodeStepName>[];
  let warnings: string[];
  /** A command that fails. */
  let broken: string;

  beforeEach(() => {
    host = new ScriptedHost();
    installed = Object.fromEntries(packages.map((name) => [name, '1.20.11-00']));
    offered = ['1.21.14-00', '1.20.11-00'];
    node = { version: '1.20.11' };
    // As Airdock makes clusters.
    imageRepository = 'localhost:5100\ndns:\n  imageRepository: localhost:5100/coredns';
    [clusterVersion, apiServer, broken] = ['1.20.11', '1.20.11', 'nothing'];
    commands = [];
    steps = [];
    warnings = [];
    host.answer = (change, { argv, script, args, input }) => {
      if (argv[0] === 'kubectl') return kubectl(argv.slice(3).join(' '), input);
      if (script.includes('apiServer=')) return `file=admin.conf\nfile=kubelet.conf\napiServer=${apiServer}\n`;
      if (script.includes('bytes=$1')) return kubeadm(args.slice(2).join(' '));
      if (change.includes('madison')) return offered.map((version) => `${argv.at(-1)} | ${version} | site\n`).join('');
      if (script.includes('${Version}'))
        return Object.entries(installed)
          .map(([name, version]) => `installed ${name} ${version}\n`)
          .join('');
      if (change.startsWith('apt-get install')) return install(change.split(' ').slice(2));
      if (change.startsWith('service') || change.startsWith('apt-mark')) commands.push(change);
      return undefined;
    };
  });
  function install(names: string[]): string {
    commands.push(`install ${names.join(' ')}`);
    for (const one of names) {
      const [name = '', version = ''] = one.split('=');
      installed[name] = version;
      host.packages.add(name);
      if (name === 'kubelet' && node) node.version = version.replace(/-.*/, '');
    }
    return '';
  }
  function kubeadm(words: string): string | { exitCode: number; stderr: string } {
    commands.push(`kubeadm ${words}`);
    if (words.startsWith(broken)) return { exitCode: 1, stderr: 'it does not work' };
    apiServer = '1.21.14';
    return '';
  }
  function kubectl(words: string, input: string): string | { exitCode: number; stderr: string } {
    if (words.includes('/readyz')) return 'ok';
    if (words.startsWith('get node')) {
      if (!node) return '';
      const { version, cordoned = false, annotations = {}, ready = true } = node;
      const conditions = [{ type: 'Ready', status: ready ? 'True' : 'False' }];
      const status = { conditions, nodeInfo: { kubeletVersion: `v${version}` } };
      return JSON.stringify({ metadata: { annotations }, spec: { unschedulable: cordoned }, status });
    }
    if (words.includes('get configmap kubeadm-config'))
      return JSON.stringify({
        data: {
          ClusterConfiguration: `kubernetesVersion: v${clusterVersion}\nimageRepository: ${imageRepository}\n`,
        },
      });
    commands.push(`kubectl ${words}${input ? ` ${input}` : ''}`);
    return words.startsWith(broken) ? { exitCode: 1, stderr: 'it does not work' } : '';
  }

  async function upgrade(change: Partial<Upgrade> = {}, options: Partial<NodeWorkOptions> = {}) {
    const signal = new AbortController().signal;
    const kubeadmHost = new KubeadmHost(host.connection as unknown as SshConnection, signal, 'node-1', 'docker');
    const work = new NodeWork({
      host: kubeadmHost,
      controlPlane: kubeadmHost,
      family: 'debian',
      packages,
      dryRun: false,
      onStep: (step) => steps.push(step),
      onWarning: (warning) => warnings.push(warning),
      ...options,
    });
    return upgradeNode(
      work,
      { kubernetesVersion: '1.21.14', role: 'controlPlane', isFirst: true, ...change },
      cluster,
    ).then(
      () => undefined,
      (error: AppError) => error.code,
    );
  }
  const drained = [
    'kubectl annotate node node-1 airdock.io/drained-for=1.21.14 --overwrite',
    'kubectl drain node-1 --ignore-daemonsets --delete-emptydir-data --timeout=300s',
  ];
  const kubelet = [
    'install kubelet=1.21.14-00 kubectl=1.21.14-00',
    'apt-mark hold kubelet kubectl',
    'service restart kubelet',
  ];
  const uncordoned = ['kubectl uncordon node-1', 'kubectl annotate node node-1 airdock.io/drained-for-'];

  it('of the first control plane upgrades the cluster, then its kubelet while it is drained', async () => {
    expect(await upgrade()).toBeUndefined();
    expect(commands).toEqual([
      'install kubeadm=1.21.14-00',
      'apt-mark hold kubeadm',
      'kubeadm upgrade apply v1.21.14 --yes',
      ...drained,
      ...kubelet,
      ...uncordoned,
    ]);
    expect(steps.map(({ name, status }) => `${name} ${status}`)).toEqual([
      'check unchanged',
      'packages done',
      'runtime unchanged',
      'kubeadm done',
      'drain done',
      'kubelet done',
      'node unchanged',
      'uncordon done',
    ]);
  });

  it('of another node follows the cluster', async () => {
    clusterVersion = '1.21.14';
    expect(await upgrade({ isFirst: false, role: 'worker' })).toBeUndefined();
    expect(commands).toContain('kubeadm upgrade node');
    expect(commands.join()).not.toContain('upgrade apply');
  });

  it('does nothing on a node that has the version', async () => {
    [clusterVersion, apiServer, node] = ['1.21.14', '1.21.14', { version: '1.21.14' }];
    installed = Object.fromEntries(packages.map((name) => [name, '1.21.14-00']));
    expect(await upgrade()).toBeUndefined();
    expect(commands).toEqual([]);
    expect(steps.every(({ status }) => status === 'unchanged')).toBe(true);
  });

  it('only plans in a dry run', async () => {
    expect(await upgrade({}, { dryRun: true })).toBeUndefined();
    expect(commands).toEqual([]);
    expect(host.changes).toEqual([]);
    const targets = steps.flatMap(({ changes }) => changes.map(({ target }) => target));
    expect(targets).toEqual(
      expect.arrayContaining(['kubeadm 1.21.14-00', 'kubeadm upgrade apply v1.21.14 --yes', 'kubelet']),
    );
    expect(steps.at(-2)?.detail).toBe('node-1 will be ready with 1.21.14');
  });

  it('leaves a node cordoned that somebody else has cordoned, with a warning', async () => {
    node = { version: '1.20.11', cordoned: true };
    expect(await upgrade()).toBeUndefined();
    expect(commands).toContain(drained[1]);
    expect(commands).not.toContain(uncordoned[0]);
    expect(warnings).toEqual(['node-1 was cordoned before, and stays so']);
  });

  it('goes on with a node that it has drained before it was cut short', async () => {
    node = { version: '1.20.11', cordoned: true, annotations: { 'airdock.io/drained-for': '1.21.14' } };
    expect(await upgrade()).toBeUndefined();
    expect(commands).not.toContain(drained[0]);
    expect(commands.slice(-2)).toEqual(uncordoned);
    expect(warnings).toEqual([]);
  });

  it.each([
    ['upgrade apply', 'kubeadm_failed', ['check', 'packages', 'runtime']],
    ['drain', 'drain_failed', ['check', 'packages', 'runtime', 'kubeadm']],
    ['uncordon', 'kubernetes_api_failed', ['check', 'packages', 'runtime', 'kubeadm', 'drain', 'kubelet', 'node']],
  ])('tells what was done when `%s` fails', async (command, code, done) => {
    broken = command;
    expect(await upgrade()).toBe(code);
    expect(steps.map(({ name }) => name)).toEqual(done);
  });

  it('writes the repository of images into a cluster that had them elsewhere', async () => {
    imageRepository = 'k8s.gcr.io';
    expect(await upgrade()).toBeUndefined();
    const replaced = commands.find((command) => command.startsWith('kubectl replace'));
    expect(replaced).toContain('imageRepository: localhost:5100');
    expect(commands.indexOf(replaced ?? '')).toBeLessThan(commands.indexOf('kubeadm upgrade apply v1.21.14 --yes'));
    expect(steps.find(({ name }) => name === 'kubeadm')?.changes[0]?.diff).toContain('-imageRepository: k8s.gcr.io');
  });

  it('names the new pause image to the kubelet', async () => {
    host.files.set(flags, 'KUBELET_KUBEADM_ARGS="--pod-infra-container-image=k8s.gcr.io/pause:3.2 --v=2"\n');
    expect(await upgrade()).toBeUndefined();
    expect(host.files.get(flags)).toBe(
      'KUBELET_KUBEADM_ARGS="--pod-infra-container-image=localhost:5100/pause:3.5 --v=2"\n',
    );
  });

  it('is no success when the kubelet does not start', async () => {
    const answer = host.answer;
    host.answer = (change, command) =>
      change === 'service restart kubelet' ? { exitCode: 1, stdout: 'failed' } : answer(change, command);
    expect(await upgrade()).toBe('node_not_ready');
    expect(steps.map(({ name }) => name)).not.toContain('kubelet');
  });

  it.each([
    ['the cluster has no such node', () => void (node = undefined), 'kubernetes_api_failed'],
    ['its packages are not offered', () => void (offered = ['1.21.13-00']), 'host_packages_failed'],
    [
      'the version of the cluster cannot be read',
      () => void (clusterVersion = 'x'.repeat(70_000)),
      'kubernetes_api_failed',
    ],
  ])('changes nothing when %s', async (_, prepare, code) => {
    prepare();
    expect(await upgrade()).toBe(code);
    expect(commands).toEqual([]);
  });
});
