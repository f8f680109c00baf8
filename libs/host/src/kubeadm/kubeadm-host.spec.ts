import type { SshConnection } from '@airdock/ssh/connection/connection';
import { type ScriptedAnswer, ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import { adminConf, KubeadmHost } from './kubeadm-host.js';

const token = 'abcdef.0123456789abcdef';
const authority = `sha256:${'a'.repeat(64)}`;
const certificateKey = 'f'.repeat(64);

describe('kubeadm and kubectl on a host', () => {
  let host: ScriptedHost;
  /** What the host says, by the beginning of a command: the words behind `kubeadm`, or behind `kubectl`. */
  let answers: Record<string, ScriptedAnswer>;
  let asked: { words: string; input: string }[];
  const kubeadm = (signal = new AbortController().signal) =>
    new KubeadmHost(host.connection as unknown as SshConnection, signal, 'Node-1', 'docker');
  beforeEach(() => {
    host = new ScriptedHost();
    answers = {};
    asked = [];
    host.answer = (_, { argv, script, args, input }) => {
      const words = script.includes('bytes=$1')
        ? args.slice(2).join(' ')
        : argv[0] === 'kubectl'
          ? argv.slice(3).join(' ')
          : script.includes('SSH_CONNECTION')
            ? 'address'
            : 'state';
      asked.push({ words, input });
      return Object.entries(answers).find(([begin]) => words.startsWith(begin))?.[1] ?? '';
    };
  });

  it('is a node by its name in lower case', () => {
    expect([kubeadm().hostName, kubeadm().nodeName]).toEqual(['Node-1', 'node-1']);
  });

  it('says what kubeadm has left', async () => {
    expect(await kubeadm().state()).toEqual({
      files: new Set(),
      authority: undefined,
      apiServerVersion: undefined,
      isUnfinished: false,
    });
    answers.state =
      'file=admin.conf\nfile=manifests/etcd.yaml\nauthority=abc\nunfinished=yes\napiServer=1.20.11\nodd\n';
    expect(await kubeadm().currentState()).toEqual({
      files: new Set(['admin.conf', 'manifests/etcd.yaml']),
      authority: 'abc',
      apiServerVersion: '1.20.11',
      isUnfinished: true,
    });
    answers.state = { exitCode: 75, stderr: 'another kubeadm has been at work for ten minutes' };
    await expect(kubeadm().state()).rejects.toMatchObject({
      code: 'kubeadm_failed',
      details: { detail: 'Node-1: another kubeadm has been at work for ten minutes' },
    });
  });

  it.each([
    ['10.0.0.1 4711 10.0.0.2 22', '10.0.0.2'],
    ['fd00::1 4711 fd00::2 22', 'fd00::2'],
    ['127.0.0.1 4711 127.0.0.1 22', undefined],
    ['::1 4711 ::1 22', undefined],
    ['fe80::1 4711 fe80::2 22', undefined],
    ['10.0.0.1 4711 $(reboot) 22', undefined],
    ['', undefined],
  ])('has of the connection %j the address %s', async (said, address) => {
    answers.address = said;
    expect(await kubeadm().address()).toBe(address);
  });

  it('gives kubeadm its configuration on standard input only', async () => {
    await kubeadm().kubeadm(['init'], { config: `token: ${token}\n` });
    expect(asked).toEqual([{ words: 'init', input: `token: ${token}\n` }]);
  });

  it('says how kubectl fails, without the secrets that it repeats', async () => {
    answers['get pods'] = { exitCode: 1, stderr: `Unauthorized: ${token}` };
    await expect(kubeadm().kubectl(['get', 'pods', '--all', 'and', 'more'])).rejects.toMatchObject({
      code: 'kubernetes_api_failed',
      details: { detail: 'Node-1: kubectl get pods --all: Unauthorized: ***' },
    });
    answers.drain = { exitCode: 3 };
    await expect(kubeadm().kubectl(['drain'], { code: 'drain_failed' })).rejects.toMatchObject({
      code: 'drain_failed',
      details: { detail: 'Node-1: kubectl drain: it ended with 3' },
    });
    expect(adminConf).toBe('/etc/kubernetes/admin.conf');
  });

  it('knows when the API is ready', async () => {
    expect(await kubeadm().isApiReady()).toBe(true);
    host.answer = () => ({ exitCode: 1 });
    expect(await kubeadm().isApiReady()).toBe(false);
  });

  it('lists the nodes of a cluster, and no line that is none', async () => {
    answers['get nodes'] =
      'node-1 v1.20.11 ready=True unschedulable=\nnode-2 v1.21.14 ready=Unknown unschedulable=true\nerror: odd\n';
    expect(await kubeadm().nodes()).toEqual([
      { name: 'node-1', version: '1.20.11', ready: true, schedulable: true },
      { name: 'node-2', version: '1.21.14', ready: false, schedulable: false },
    ]);
  });

  it('tells of one node what a cluster knows of it', async () => {
    expect(await kubeadm().node('node-1')).toBeUndefined();
    answers['get node node-1'] = JSON.stringify({
      metadata: { labels: { 'node-role.kubernetes.io/control-plane': '' }, annotations: { a: 'b' } },
      spec: { unschedulable: true },
      status: { conditions: [{ type: 'Ready', status: 'True' }], nodeInfo: { kubeletVersion: 'v1.20.11' } },
    });
    expect(await kubeadm().node('node-1')).toEqual({
      name: 'node-1',
      ready: true,
      version: '1.20.11',
      schedulable: false,
      isControlPlane: true,
      annotations: { a: 'b' },
    });
    answers['get node node-1'] = '{}';
    expect(await kubeadm().node('node-1')).toMatchObject({ ready: false, schedulable: true, isControlPlane: false });
    for (const odd of ['no JSON', '[]', '{"metadata": {"labels": 1}}']) {
      answers['get node node-1'] = odd;
      await expect(kubeadm().node('node-1')).rejects.toMatchObject({ code: 'kubernetes_api_failed' });
    }
  });

  describe('makes what a node needs to join', () => {
    beforeEach(() => {
      answers['token create'] =
        `kubeadm join 10.0.0.1:6443 --token ${token} --discovery-token-ca-cert-hash ${authority}\n`;
      answers['init phase upload-certs'] = `[upload-certs] Using certificate key:\n${certificateKey}\n`;
    });
    const secrets = { apiServerEndpoint: '10.0.0.1:6443', token, caCertHash: authority };

    it('a key of the certificates only for a control plane', async () => {
      expect(await kubeadm().createJoinSecrets('config', false)).toEqual({ ...secrets, certificateKey: undefined });
      expect(asked.map(({ words }) => words)).toEqual(['token create --print-join-command']);
      expect(await kubeadm().createJoinSecrets('config', true)).toEqual({ ...secrets, certificateKey });
    });

    it('or says what was not printed', async () => {
      answers['init phase upload-certs'] = 'nothing';
      await expect(kubeadm().createJoinSecrets('', true)).rejects.toMatchObject({
        details: { detail: 'Node-1: kubeadm upload-certs printed no key' },
      });
      answers['token create'] = `kubeadm join 10.0.0.1:6443 --token ${token}\n`;
      await expect(kubeadm().createJoinSecrets('', false)).rejects.toMatchObject({
        details: { detail: 'Node-1: kubeadm token create printed no join command' },
      });
    });
  });

  it('asks until it is so, for a time, and ends at a cancellation', async () => {
    expect(await kubeadm().isWithin(0, async () => true)).toBe(true);
    expect(await kubeadm().isWithin(0, async () => false)).toBe(false);
    const stop = new AbortController();
    const waiting = kubeadm(stop.signal).isWithin(60_000, async () => {
      stop.abort(new Error('cancelled'));
      return false;
    });
    await expect(waiting).rejects.toMatchObject({ name: 'AbortError' });
  });
});
