/** Kubernetes nodes made of real hosts, with stand-ins of kubeadm, kubelet and kubectl: see docs/nodes.md. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createNodeOperation, getNodeOperation } from '@airdock/clients/generated/sdk.gen';
import type { Job, NodeAction, NodeCluster, NodeOperation } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { fromProblem } from '@airdock/core/errors';
import { renderInitConfig, renderJoinConfig } from '@airdock/core/kubernetes/kubeadm-config';
import type { LabHost } from '@airdock/testing/lab/host';
import { kubernetesImages, makeKubernetesPackages } from '@airdock/testing/lab/kubeadm';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { addAptMetadata } from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { type HostGate, installGate } from '../support/host-gate.js';
import { configureHost, out, registerHost, stateOf } from '../support/hosts.js';
import { endOf, resourceId } from '../support/jobs.js';

type Name = 'master' | 'first' | 'second';
const names: Name[] = ['master', 'first', 'second'];
const [oldVersion, newVersion] = ['1.20.11', '1.21.14'] as const;
const versions = [oldVersion, newVersion];
const started = await startLab();
if (!started.lab) process.stderr.write(`node operations: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('nodes', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let printed = '';
  let processes = '';
  const answers: unknown[] = [];
  const hosts = {} as Record<Name, LabHost>;
  const ids = {} as Record<Name, string>;
  const gates = {} as Record<Name, HostGate>;
  let cluster: NodeCluster;

  beforeAll(async () => {
    folder = await tempDir('nodes');
    const apt = join(folder.path, 'apt');
    await makeKubernetesPackages(apt, versions);
    await addAptMetadata(apt);
    const onOutput = (text: string) => {
      printed += text;
    };
    const packages = { repositories: [{ name: 'kubernetes', format: 'apt', folder: apt }] };
    const starts = names.map(async (name) => {
      hosts[name] = await lab.startHost({ name, withContainerd: name === 'first' });
      // The kubelet is started when everything of the node is written.
      gates[name] = await installGate(hosts[name], '/usr/sbin/service', 'kubelet\\ restart');
    });
    [du] = await Promise.all([Du.start({ folder: folder.path, packages, logLevel: 'debug', onOutput }), ...starts]);
    client = await du.client();
    const registry = `localhost:${du.registryPort}`;
    cluster = {
      kubernetesVersion: `${oldVersion}-pmk.2038`,
      imageRepository: registry,
      podSubnet: '10.20.0.0/16',
      serviceSubnet: '10.21.0.0/16',
      pauseImage: `${registry}/pause:3.2`,
    };
    const images = [...new Set(versions.flatMap(kubernetesImages))];
    await push(client, await carryIn(client, du, { images, layerBytes: 2_000 }));
    await Promise.all(
      names.map(async (name) => {
        ids[name] = await registerHost(client, hosts[name], {
          name,
          credential: { username: 'admin', privateKey: hosts[name].privateKey },
        });
        const { job } = await configureHost(client, ids[name]);
        if (job.error) throw fromProblem(job.error);
      }),
    );
  });
  afterEach(async ({ task }) => {
    if (task.result?.state !== 'fail') return;
    process.stderr.write(`${du?.output}\n`);
    for (const name of names)
      process.stderr.write(`${name}: ${(await hosts[name]?.exec('tail -n 20 /var/log/kubelet.log'))?.stdout}\n`);
  });
  afterAll(async () => {
    await du?.stop();
    await lab.stop();
    await folder?.remove();
  });

  const start = async (name: Name, operation: NodeAction, dryRun = false): Promise<Job> =>
    (await createNodeOperation({ client, body: { hostId: ids[name], operation, dryRun }, throwOnError: true })).data;
  async function endOfOperation(job: Job): Promise<{ job: Job; operation: NodeOperation }> {
    const ended = await endOf(client, job.id);
    const { data: operation } = await getNodeOperation({ client, path: { id: resourceId(job) }, throwOnError: true });
    answers.push(ended, operation);
    return { job: ended, operation };
  }
  /** Watches the processes of the host meanwhile. */
  async function operate(name: Name, action: NodeAction, dryRun = false) {
    let over = false;
    const end = start(name, action, dryRun)
      .then(endOfOperation)
      .finally(() => {
        over = true;
      });
    while (!over)
      for (const host of new Set([hosts[name], hosts.master]))
        processes += (await host.exec('cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr "\\0" "\\n"'))
          .stdout;
    return end;
  }
  const init = (change: Partial<NodeCluster> = {}): NodeAction => ({
    action: 'init',
    cluster: { ...cluster, ...change },
  });
  /** All but the first are joined as this. */
  const roles = { master: 'controlPlane', first: 'worker', second: 'controlPlane' } as const;
  const joins = (name: Name): NodeAction => ({
    action: 'join',
    role: roles[name],
    controlPlaneHostId: ids.master,
    cluster,
  });
  const upgrade = (name: Name, kubernetesVersion: string = newVersion): NodeAction => ({
    ...{
      action: 'upgrade',
      kubernetesVersion,
      isFirst: name === 'master',
      role: roles[name],
      controlPlaneHostId: ids.master,
    },
    cluster: { ...cluster, pauseImage: `${cluster.imageRepository}/pause:3.4.1` },
  });
  const inspect = (): NodeAction => ({ action: 'inspect', controlPlaneHostId: ids.master });
  const statuses = ({ steps }: NodeOperation) => Object.fromEntries(steps.map(({ name, status }) => [name, status]));
  const done = ({ steps }: NodeOperation) =>
    steps.flatMap(({ changes }) => changes.map(({ kind, action, target }) => `${kind} ${action} ${target}`));
  const images = async (name: Name) =>
    (
      await out(
        hosts[name],
        name === 'first' ? 'ctr -n k8s.io images ls -q' : "docker image ls --format '{{.Repository}}:{{.Tag}}'",
      )
    ).split('\n');
  /** The nodes as the cluster tells of them, when they have told it. */
  async function seen(): Promise<string[]> {
    const { operation } = await endOfOperation(await start('master', inspect()));
    return operation.nodes.map(({ name, ready, version, schedulable }) =>
      [name, ready ? 'Ready' : 'NotReady', version, schedulable ? '' : 'cordoned'].join(' ').trim(),
    );
  }
  async function isSettled(name: Name, action: NodeAction): Promise<void> {
    const before = await stateOf(hosts[name]);
    const { job, operation } = await endOfOperation(await start(name, action));
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(done(operation)).toEqual([]);
    expect(new Set(Object.values(statuses(operation)))).toEqual(new Set(['unchanged']));
    expect(await stateOf(hosts[name])).toBe(before);
  }

  it('are refused in a version that no package repository has, and it is said which there are', async () => {
    const { job } = await endOfOperation(await start('master', init({ kubernetesVersion: '1.20.12' })));
    expect(job).toMatchObject({
      state: 'failed',
      error: {
        code: 'host_packages_failed',
        offered: expect.arrayContaining(['1.20.11-00', '1.21.14-00']) as string[],
      },
    });
    expect(job.error?.detail).toMatch(/have no kubeadm 1\.20\.12; of kubeadm there is .*1\.20\.11-00/);
    expect((await hosts.master.exec('command -v kubeadm')).exitCode).not.toBe(0);
  });

  it('are planned by a dry run, with the commands and the file, and nothing is changed', async () => {
    const before = await stateOf(hosts.master);
    const { job, operation } = await endOfOperation(await start('master', init(), true));
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(statuses(operation)).toEqual({
      check: 'unchanged',
      packages: 'planned',
      runtime: 'unchanged',
      kubeadm: 'planned',
    });
    expect(done(operation)).toEqual(
      expect.arrayContaining([
        'package install kubelet 1.20.11-00',
        'command run kubeadm init --skip-token-print --skip-certificate-key-print --config FILE',
      ]),
    );
    const file = operation.steps.flatMap(({ changes }) => changes).find(({ kind }) => kind === 'file');
    expect(file?.diff).toContain(`+imageRepository: "${cluster.imageRepository}"`);
    expect(await stateOf(hosts.master)).toBe(before);
  });

  it('are made anew where an init was killed half way, and the DU with it', async () => {
    await gates.master.shut();
    const job = await start('master', init());
    await gates.master.reached();
    await du.end('SIGKILL');
    await out(hosts.master, 'kill -9 $(pidof -x kubeadm service)');
    await gates.master.open();
    expect(await out(hosts.master, 'ls /etc/kubernetes/manifests')).toContain('kube-apiserver.yaml');
    await du.startProcess();
    const { job: ended, operation } = await endOfOperation(job);
    expect(ended).toMatchObject({ state: 'succeeded', error: null });
    expect(done(operation)).toContain('command run kubeadm reset --force --cri-socket /var/run/dockershim.sock');
    expect(await out(hosts.master, 'ls -A /etc/kubernetes')).not.toContain('airdock-unfinished');
    expect(await images('master')).toEqual(
      expect.arrayContaining(
        kubernetesImages(oldVersion).map((name) => name.replace('k8s.gcr.io', cluster.imageRepository)),
      ),
    );
    await expect.poll(seen, { timeout: 120_000 }).toEqual([`master Ready ${oldVersion}`]);
  });

  it('are refused by kubeadm with its words when an image is not there, and a later call is not in the way of that', async () => {
    const { job } = await endOfOperation(
      await start('second', init({ imageRepository: `${cluster.imageRepository}/nowhere` })),
    );
    expect(job).toMatchObject({ state: 'failed', error: { code: 'kubeadm_failed' } });
    expect(job.error?.detail).toMatch(
      /second: kubeadm init .*failed to pull image "localhost:\d+\/nowhere\/kube-apiserver:v1\.20\.11"/s,
    );
  });

  it('are finished, and not made anew, where the host came up as a member after its power went; and are reset', async () => {
    await gates.second.shut();
    const job = await start('second', init());
    await gates.second.reached();
    await du.end('SIGKILL');
    await hosts.second.reboot();
    await du.startProcess();
    const { job: ended, operation } = await endOfOperation(job);
    expect(ended).toMatchObject({ state: 'succeeded', error: null });
    expect(done(operation)).toContain('command run kubeadm init phase addon all --config FILE');
    expect(done(operation).join()).not.toMatch(/kubeadm (?:reset|init --)/);
    expect(await out(hosts.second, 'kubectl get nodes')).toContain('second');
    const foreign = await endOfOperation(await start('second', joins('second')));
    expect(foreign.job.error).toMatchObject({ code: 'host_in_cluster' });
    const reset = await endOfOperation(await start('second', { action: 'reset' }));
    expect(reset.job).toMatchObject({ state: 'succeeded', error: null });
    expect((await hosts.second.exec('ls -dA /etc/kubernetes /run/airdock-kubeadm*')).stdout).toBe('');
    await isSettled('second', { action: 'reset' });
  });

  it('are joined by workers, with containerd as with Docker', async () => {
    const { job, operation } = await operate('first', joins('first'));
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(statuses(operation)).toMatchObject({ packages: 'done', runtime: 'done', kubeadm: 'done' });
    expect(await out(hosts.first, 'cat /etc/containerd/config.toml')).toContain(
      `sandbox_image = "${cluster.pauseImage}"`,
    );
    expect(await images('first')).toEqual(
      expect.arrayContaining([cluster.pauseImage, `${cluster.imageRepository}/kube-proxy:v${oldVersion}`]),
    );
    expect(processes).toContain('kubeadm');
  });

  it('join to the end on a host that went on while the DU was dead, here as a second control plane', async () => {
    await gates.second.shut();
    const job = await start('second', joins('second'));
    await gates.second.reached();
    processes += await out(hosts.second, 'cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr "\\0" "\\n"');
    await du.end('SIGKILL');
    await gates.second.open();
    await du.startProcess();
    const { job: ended, operation } = await endOfOperation(job);
    expect(ended).toMatchObject({ state: 'succeeded', error: null });
    // Once, and not again.
    expect(done(operation).filter((one) => one.startsWith('command run kubeadm'))).toEqual([]);
    expect(
      await out(hosts.second, 'ls -A /etc/kubernetes; ls -dA /run/airdock-kubeadm* 2>/dev/null || true'),
    ).not.toMatch(/unfinished|airdock-kubeadm/);
    await expect
      .poll(seen, { timeout: 120_000 })
      .toEqual([`first Ready ${oldVersion}`, `master Ready ${oldVersion}`, `second Ready ${oldVersion}`]);
  });

  it('are left as they are by a second run', async () => {
    await isSettled('master', init());
    for (const name of ['first', 'second'] as const) await isSettled(name, joins(name));
  });

  it('are made by a stand-in that refuses what kubeadm refuses', async () => {
    const version = {
      kubernetesVersion: oldVersion,
      nodeName: 'other',
      criSocket: '/var/run/dockershim.sock',
      advertiseAddress: hosts.master.address,
    };
    const settings = { ...cluster, ...version, controlPlaneEndpoint: `${hosts.master.address}:6443` };
    const config = renderInitConfig(settings);
    const joinConfig = renderJoinConfig({
      ...{
        ...settings,
        criSocket: '/run/containerd/containerd.sock',
        apiServerEndpoint: settings.controlPlaneEndpoint,
        certificateKey: undefined,
      },
      ...{ token: 'abcdef.0123456789abcdef', caCertHash: `sha256:${'0'.repeat(64)}` },
    });
    const refusal = async (name: Name, command: string, text = '') => {
      const { exitCode, stderr } = await hosts[name].exec(`cat >/tmp/config.yaml <<'END'\n${text}END\n${command}`);
      return exitCode === 0 ? 'not refused' : stderr;
    };
    const withConfig = (command: string) => `kubeadm ${command} --config /tmp/config.yaml`;
    expect(await refusal('master', withConfig('init'), config)).toMatch(
      /ERROR DirAvailable--var-lib-etcd|FileAvailable--etc-kubernetes-manifests/,
    );
    expect(await refusal('master', withConfig('init --nonsense'), config)).toContain('unknown flag: --nonsense');
    expect(await refusal('master', withConfig('token create --ttl 1h'), config)).toContain(
      "can not mix '--config' with arguments [ttl]",
    );
    expect(await refusal('master', withConfig('init'), config.replace('podSubnet', 'podNet'))).toContain(
      'unknown field "podNet"',
    );
    expect(await refusal('master', withConfig('init'), config.replaceAll('v1beta2', 'v1beta3'))).toContain('API spec');
    expect(await refusal('master', `kubeadm upgrade apply v${newVersion} --yes`)).toContain(
      'is not the kubeadm version',
    );
    expect(await refusal('first', withConfig('join'), joinConfig)).toContain(
      'FileAvailable--etc-kubernetes-kubelet.conf',
    );
    await out(
      hosts.first,
      'mkdir /tmp/kept && cp -a /etc/kubernetes/. /tmp/kept && rm -r /etc/kubernetes/pki /etc/kubernetes/kubelet.conf',
    );
    const wrongToken = await refusal('first', withConfig('join'), joinConfig);
    const expired = await out(
      hosts.master,
      `cat >/tmp/config.yaml <<'END'\n${config.replace('15m0s', '1s')}END\nkubeadm token create --config /tmp/config.yaml; sleep 1.1`,
    );
    const late = await refusal('first', withConfig('join'), joinConfig.replace('abcdef.0123456789abcdef', expired));
    const good = await out(hosts.master, 'kubeadm token create --ttl 1h');
    const otherAuthority = await refusal(
      'first',
      withConfig('join'),
      joinConfig.replace('abcdef.0123456789abcdef', good),
    );
    await out(hosts.first, 'cp -a /tmp/kept/. /etc/kubernetes && rm -r /tmp/kept /tmp/config.yaml');
    expect(wrongToken).toContain('Unauthorized');
    expect(late).toContain('Unauthorized');
    expect(otherAuthority).toContain('does not match any of the pinned ones');
  });

  it('are upgraded one after the other, the first control plane first, and no version is skipped', async () => {
    const early = await endOfOperation(await start('first', upgrade('first')));
    expect(early.job.error).toMatchObject({ code: 'kubernetes_version_skew' });
    const far = await endOfOperation(await start('master', upgrade('master', '1.22.17')));
    expect(far.job.error).toMatchObject({
      code: 'kubernetes_version_skew',
      detail: expect.stringContaining('1.20.11') as string,
    });
    await out(hosts.master, 'kubectl cordon second');
    for (const name of ['master', 'second', 'first'] as const) {
      const { job, operation } = await operate(name, upgrade(name));
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(done(operation)).toContain(
        name === 'master'
          ? `command run kubeadm upgrade apply v${newVersion} --yes`
          : 'command run kubeadm upgrade node',
      );
      expect(operation.nodes.find((node) => node.name === name)).toMatchObject({
        ready: true,
        version: newVersion,
        schedulable: name !== 'second',
      });
      expect(operation.warnings.join()).toContain(name === 'second' ? 'stays so' : '');
      await isSettled(name, upgrade(name));
    }
    const expected = kubernetesImages(newVersion).map((name) => name.replace('k8s.gcr.io', cluster.imageRepository));
    expect(await images('master')).toEqual(expect.arrayContaining(expected));
    expect(await images('first')).toContain(`${cluster.imageRepository}/pause:3.4.1`);
    expect(await out(hosts.first, 'apt-mark showhold')).toBe('kubeadm\nkubectl\nkubelet');
    const down = await endOfOperation(await start('first', upgrade('first', oldVersion)));
    expect(down.job.error).toMatchObject({ code: 'kubernetes_version_skew' });
  });

  it('are taken out of the cluster, and hosts are as they were', async () => {
    const { job, operation } = await endOfOperation(
      await start('first', { action: 'reset', controlPlaneHostId: ids.master }),
    );
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(operation.nodes.map(({ name }) => name)).toEqual(['master', 'second']);
    expect((await configureHost(client, ids.first, { action: 'unconfigure' })).result).toMatchObject({
      error: null,
      warnings: [],
    });
    expect(
      await out(
        hosts.first,
        'find /etc/kubernetes /etc/containerd -name "*airdock*"; dpkg-query -W -f "${db:Status-Status} ${Package}\\n" | grep -E " kube" || true',
      ),
    ).toBe('');
  });

  it('and no token is in the log at its most talkative, a file of the DU, an answer, or an argument on a host', async () => {
    // What the API server stand-in has ever made.
    const state = JSON.parse(await out(hosts.master, 'cat /var/lib/etcd/state.json')) as {
      tokens: object;
      admin: string;
      nodeTokens: object;
    };
    const secrets = [state.admin, ...Object.keys(state.tokens), ...Object.keys(state.nodeTokens)];
    expect(Object.keys(state.tokens).length).toBeGreaterThanOrEqual(3);
    expect(printed).toContain('"level":20');
    const texts = new Map([
      ['the log', printed],
      ['the answers', JSON.stringify(answers)],
      ['processes', processes],
    ]);
    for (const entry of await readdir(du.dataDir, { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      if (entry.isFile() && !path.includes('/registry/storage/')) texts.set(path, await readFile(path, 'latin1'));
    }
    expect([...texts.keys()].some((path) => path.endsWith('db/host.sqlite'))).toBe(true);
    expect(
      [...texts].filter(([, text]) => secrets.some((secret) => text.includes(secret))).map(([name]) => name),
    ).toEqual([]);
  });
});
