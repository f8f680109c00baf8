import type { AppError } from '@airdock/core/errors';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { describe, expect, it } from 'vitest';
import { KubeadmHost } from './kubeadm-host.js';
import { initNode, joinNode, resetNode } from './kubeadm-node.js';
import { NodeWork } from './node-work.js';
import { upgradeNode } from './upgrade-node.js';

const token = 'abcdef.0123456789abcdef';
const certificateKey = 'f'.repeat(64);
const cluster = {
  kubernetesVersion: '1.20.11',
  imageRepository: 'localhost:5100',
  podSubnet: '10.20.0.0/16',
  serviceSubnet: '10.21.0.0/16',
  pauseImage: 'localhost:5100/pause:3.2',
};

interface Scene {
  /** What kubeadm has left on the host. */
  state?: string[];
  hasApi?: boolean;
  /** As the cluster knows the host. */
  node?: object | undefined;
  /** What kubeadm complains about. */
  complaint?: string;
}

/** A host with the packages in place that answers as the scene says, and the commands that it was told to run. */
function hostWith({ state = [], hasApi = true, node, complaint }: Scene) {
  const commands: string[] = [];
  let isMade = false;
  const answer = (argv: string[]): string | Error => {
    const text = argv.join(' ');
    if (argv[0] === 'kubectl') {
      if (text.includes('/readyz')) return hasApi || isMade ? 'ok' : new Error('refused');
      if (text.includes(' get node ')) return node || isMade ? JSON.stringify(node ?? {}) : '';
      if (text.includes('kubeadm-config'))
        return JSON.stringify({
          data: { ClusterConfiguration: 'kubernetesVersion: v1.20.11\nimageRepository: k8s.gcr.io\n' },
        });
      commands.push(argv.filter((word) => !word.includes('kube')).join(' '));
      return '';
    }
    if (text.includes('authority=')) return state.join('\n');
    if (text.includes('dpkg-query'))
      return ['kubeadm', 'kubelet', 'kubectl'].map((name) => `installed ${name} 1.20.11-00`).join('\n');
    if (text.includes('limit=$1')) return 'settled not absent';
    if (text.includes('bytes=$1')) {
      // Behind `sh -c SCRIPT sh BYTES OUTPUT`.
      const words = argv.slice(6).join(' ');
      if (words.startsWith('token create'))
        return `kubeadm join 10.0.0.1:6443 --token ${token} --discovery-token-ca-cert-hash sha256:${'a'.repeat(64)}`;
      if (words.includes('upload-certs')) return certificateKey;
      commands.push(words);
      if (complaint) return new Error(complaint);
      isMade ||= words.startsWith('init') || words === 'join';
    }
    return '';
  };
  const exec = async (argv: string[]) => {
    const said = answer(argv);
    return said instanceof Error
      ? { exitCode: 1, stdout: '', stderr: said.message }
      : { exitCode: 0, stdout: said, stderr: '' };
  };
  const run = async (argv: string[]) => (await exec(argv)).stdout;
  return {
    host: new KubeadmHost({ exec, run } as unknown as SshConnection, new AbortController().signal, 'Node-1', 'docker'),
    commands,
  };
}

const controlPlaneState = ['file=admin.conf', 'file=kubelet.conf', 'authority=1'];

/** What was run: on the host, and, after a bar, by kubectl on the control plane. */
async function commandsOf(
  scene: Scene,
  action: (work: NodeWork) => Promise<void>,
  controlPlane?: ReturnType<typeof hostWith>,
  dryRun = false,
): Promise<string[]> {
  const { host, commands } = hostWith(scene);
  const changes: string[] = [];
  const work = new NodeWork({
    host,
    controlPlane: controlPlane?.host ?? host,
    family: 'debian',
    packages: ['kubeadm', 'kubelet', 'kubectl'],
    dryRun,
    onStep: (step) => changes.push(...step.changes.map(({ target }) => target)),
    onWarning: () => undefined,
  });
  const code = await action(work).then(
    () => undefined,
    (error: AppError) => error.code,
  );
  for (const secret of [token, certificateKey]) expect(changes.join('\n')).not.toContain(secret);
  return [...commands, ...(controlPlane?.commands.map((one) => `| ${one}`) ?? []), ...(code ? [code] : [])];
}

describe('a first control plane', () => {
  const init = 'init --skip-token-print --skip-certificate-key-print';
  const reset = 'reset --force --cri-socket /var/run/dockershim.sock';
  const phases = [
    'upload-config all',
    'mark-control-plane',
    'bootstrap-token --skip-token-print',
    'kubelet-finalize all',
    'addon all',
  ];
  const of = (scene: Scene) => commandsOf(scene, (work) => initNode(work, cluster));
  const made = ['file=admin.conf', 'file=kubelet.conf'];

  it('is made where there is nothing', async () => {
    expect(await of({})).toEqual([init]);
    // An init that ended before it wrote anything.
    expect(await of({ state: ['unfinished=yes'] })).toEqual([init]);
  });

  it('is left alone when it is a member, or may be one', async () => {
    expect(await of({ state: made, node: {} })).toEqual([]);
    expect(await of({ state: made, hasApi: false })).toEqual(['kubernetes_api_failed']);
    expect(await of({ state: made })).toEqual(['kubernetes_api_failed']);
    expect(await of({ state: ['file=kubelet.conf', 'file=pki/ca.crt'] })).toEqual(['host_in_cluster']);
  });

  it('is finished when it is a member whose init was cut short', async () => {
    expect(await of({ state: [...made, 'unfinished=yes'], node: {} })).toEqual(
      phases.map((phase) => `init phase ${phase}`),
    );
  });

  it('is made anew when it is half made', async () => {
    expect(await of({ state: [...made, 'unfinished=yes'], hasApi: false })).toEqual([reset, init]);
    expect(await of({ state: ['file=kubelet.conf', 'unfinished=yes'] })).toEqual([reset, init]);
    expect(await of({ state: ['file=pki/ca.crt'] })).toEqual([reset, init]);
  });

  it('is no success when kubeadm complains, whose words are masked and bounded', async () => {
    const { host } = hostWith({
      complaint: `${'x'.repeat(1000)} --token ${token} sha256:${'0'.repeat(64)} ${certificateKey}`,
    });
    const error = (await host.kubeadm(['init']).catch((thrown: unknown) => thrown)) as AppError;
    expect(error.code).toBe('kubeadm_failed');
    expect(error.details.detail).toMatch(/^Node-1: kubeadm init: x+ --token \*{3} sha256:\*{3} \*{3}$/);
    expect(error.details.detail?.length).toBeLessThan(530);
  });
});

describe('a host that joins', () => {
  const reset = 'reset --force --cri-socket /var/run/dockershim.sock';
  const of = (scene: Scene, role: 'worker' | 'controlPlane' = 'worker') =>
    commandsOf(
      scene,
      (work) => joinNode(work, role, cluster),
      hostWith({ state: controlPlaneState, node: scene.node ?? (scene.state?.length ? undefined : {}) }),
    );
  const member = { metadata: { labels: { 'node-role.kubernetes.io/master': '' } } };
  const files = ['file=kubelet.conf', 'authority=1'];

  it('is made a node where there is nothing', async () => {
    expect(await of({})).toEqual(['join']);
    expect(await of({}, 'controlPlane')).toEqual(['join']);
  });

  it('is left alone when it is a member, and when it is one of another cluster or in another role', async () => {
    expect(await of({ state: files, node: {} })).toEqual([]);
    expect(await of({ state: files, node: member }, 'controlPlane')).toEqual([]);
    expect(await of({ state: ['file=kubelet.conf', 'authority=2'], node: {} })).toEqual(['host_in_cluster']);
    expect(await of({ state: files, node: {} }, 'controlPlane')).toEqual(['host_in_cluster']);
  });

  it('is finished when it is a member whose join was cut short', async () => {
    const annotate = '| kubectl annotate node node-1 --overwrite';
    const [seen] = await of({ state: [...files, 'unfinished=yes'], node: {} });
    expect([seen]).toEqual([annotate.replace('kubectl ', '')]);
  });

  it('is made anew when it is half made', async () => {
    expect(await of({ state: [...files, 'unfinished=yes'], node: {} }, 'controlPlane')).toEqual([
      reset,
      'join',
      '| delete node node-1 --ignore-not-found',
    ]);
    const left = await of({ state: ['file=kubelet.conf', 'authority=2', 'unfinished=yes'], node: {} });
    expect(left).toEqual([reset, 'join', '| delete node node-1 --ignore-not-found']);
  });
});

describe('a node that is reset', () => {
  const reset = 'reset --force --cri-socket /var/run/dockershim.sock';
  const deleted = '| delete node node-1 --ignore-not-found';
  const files = ['file=kubelet.conf', 'authority=1'];

  it('is taken out of a cluster that goes on, also when nothing of it is on the host', async () => {
    const goingOn = () => hostWith({ state: controlPlaneState, node: {} });
    expect(await commandsOf({ state: files }, resetNode, goingOn())).toEqual([reset, deleted]);
    expect(await commandsOf({}, resetNode, goingOn())).toEqual([deleted]);
    expect(await commandsOf({ state: files }, resetNode, hostWith({ state: controlPlaneState }))).toEqual([reset]);
  });

  it('takes the cluster with it when it is its own control plane', async () => {
    expect(await commandsOf({ state: controlPlaneState, node: {} }, resetNode)).toEqual([reset]);
  });
});

describe('a dry run', () => {
  const dry = (scene: Scene, action: (work: NodeWork) => Promise<void>, controlPlane?: ReturnType<typeof hostWith>) =>
    commandsOf(scene, action, controlPlane, true);

  it('runs nothing, and makes no secrets', async () => {
    expect(await dry({}, (work) => initNode(work, cluster))).toEqual([]);
    const controlPlane = hostWith({ state: controlPlaneState });
    expect(await dry({}, (work) => joinNode(work, 'controlPlane', cluster), controlPlane)).toEqual([]);
    expect(await dry({ state: ['file=kubelet.conf'] }, resetNode, controlPlane)).toEqual([]);
  });
});

describe('an upgrade', () => {
  const of = (kubernetesVersion: string, isFirst: boolean, kubelet: string) => {
    const node = { status: { nodeInfo: { kubeletVersion: kubelet } } };
    const role = isFirst ? 'controlPlane' : 'worker';
    return commandsOf(
      {},
      (work) => upgradeNode(work, { kubernetesVersion, isFirst, role }, cluster),
      hostWith({ state: controlPlaneState, node }),
    );
  };

  it.each([
    ['over a minor version', '1.22.17', true, 'v1.20.11'],
    ['back', '1.20.10', true, 'v1.20.11'],
    ['before the cluster', '1.21.14', false, 'v1.20.11'],
    ['to the next major version', '2.0.0', true, 'v1.20.11'],
    ['of a node that was left behind', '1.20.11', false, 'v1.18.9'],
  ])('is refused before anything is done: %s', async (_, version, isFirst, kubelet) => {
    expect(await of(version, isFirst, kubelet)).toEqual([
      version.startsWith('2') ? 'runtime_unsupported' : 'kubernetes_version_skew',
    ]);
  });
});
