import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import { cleanLine } from '@airdock/core/host/host-text';
import { maskKubeadmSecrets } from '@airdock/core/kubernetes/kubeadm-config';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { z } from 'zod';
import type { RuntimeName } from '../runtime/runtime-host.js';

/** A node as `kubectl get nodes` tells of it. */
export interface ClusterNode {
  name: string;
  ready: boolean;
  /** Of its kubelet: `1.20.11`. */
  version: string;
  schedulable: boolean;
}

/** The same, and what only one node at a time is asked for. */
export interface ClusterNodeDetails extends ClusterNode {
  isControlPlane: boolean;
  annotations: Record<string, string>;
}

/** What kubeadm has left on a host. */
export interface NodeState {
  /** Files below /etc/kubernetes that kubeadm init or join would trip over, by their relative path. */
  files: ReadonlySet<string>;
  /**
   * Digest of the certificate of the cluster's authority, which tells clusters apart; undefined where there is none.
   */
  authority: string | undefined;
  /** The version of the API server that runs, or is to run, as a static pod: `1.20.11`. */
  apiServerVersion: string | undefined;
  /** An init or join of Airdock's was begun, and its end has not been seen. */
  isUnfinished: boolean;
}

/** What a node needs to join: short-lived, and never stored. */
export interface JoinSecrets {
  apiServerEndpoint: string;
  token: string;
  caCertHash: string;
  certificateKey: string | undefined;
}

const maxLines = 10_000;
/** What kubectl on a control plane uses. */
export const adminConf = '/etc/kubernetes/admin.conf';
/** Stands on a host from before an init or join until its end was seen; what was asked for, without secrets. */
export const unfinishedFile = '/etc/kubernetes/airdock-unfinished.yaml';
/** Of one run of kubeadm, with the id of the process behind it: what it reads once. In memory, for root only. */
const workDirs = '/run/airdock-kubeadm.';

// A worker that was killed may have left a kubeadm at work: its end is waited for, since only then it is known what
// there is.
const waitScript = `
isBusy() {
  for work in ${workDirs}*; do
    [ -d "$work" ] || continue
    grep -qs airdock-kubeadm "/proc/\${work##*.}/cmdline" && return 0
    rm -rf "$work"
  done
  grep -qsx kubeadm /proc/[0-9]*/comm
}
rounds=0
while isBusy; do
  rounds=$((rounds + 1))
  [ "$rounds" -le 1200 ] || { echo 'another kubeadm has been at work for ten minutes' >&2; exit 75; }
  sleep 0.5
done`;
const stateScript = `
cd /etc/kubernetes 2>/dev/null || exit 0
for file in kubelet.conf bootstrap-kubelet.conf admin.conf pki/ca.crt manifests/*; do [ ! -e "$file" ] || echo "file=$file"; done
[ ! -e pki/ca.crt ] || echo "authority=$(sha256sum <pki/ca.crt | cut -d' ' -f1)"
[ ! -e ${unfinishedFile} ] || echo unfinished=yes
sed -n 's,^ *image: *.*/kube-apiserver:v\\([0-9.]*\\).*,apiServer=\\1,p' manifests/kube-apiserver.yaml 2>/dev/null
exit 0`;

// Runs kubeadm to its end also when the connection breaks: nothing that it writes to leads there, but for what is asked
// for. The configuration comes on standard input, \`$1\` bytes of it, and is gone afterwards; --config is added for it.
const kubeadmScript = `
umask 077
bytes=$1 output=$2 work=${workDirs}$$
shift 2
rm -rf "$work"
mkdir "$work" || exit 73
trap 'rm -rf "$work"' EXIT
trap 'exit 143' HUP INT TERM
export LC_ALL=C
if [ "$bytes" -gt 0 ]; then
  cat >"$work/config.yaml"
  # A connection that breaks looks like the end of the text.
  [ "$(wc -c <"$work/config.yaml")" -eq "$bytes" ] || { echo 'the configuration did not arrive whole' >&2; exit 74; }
  set -- "$@" --config "$work/config.yaml"
fi
if [ "$output" = kept ]; then kubeadm "$@" 2>"$work/errors" </dev/null; else kubeadm "$@" >/dev/null 2>"$work/errors" </dev/null; fi
code=$?
[ "$code" -eq 0 ] || tail -c 4000 "$work/errors" >&2
exit "$code"`;

const jsonPath = [
  '{range .items[*]}{.metadata.name}{" "}{.status.nodeInfo.kubeletVersion}{" ready="}{.status.conditions[?(@.type=="Ready")].status}',
  '{" unschedulable="}{.spec.unschedulable}{"\\n"}{end}',
].join('');
const controlPlaneLabels = ['node-role.kubernetes.io/control-plane', 'node-role.kubernetes.io/master'];

/**
 * kubeadm and, on a control plane, kubectl on a host; both must be installed. Commands of
 * https://kubernetes.io/docs/reference/setup-tools/kubeadm/ that are alike in Kubernetes 1.20 and later. Secrets go to
 * the host on standard input only, and no error repeats them.
 */
export class KubeadmHost {
  constructor(
    readonly connection: SshConnection,
    readonly signal: AbortSignal,
    /** Its name in errors, and, in lower case, as a node. */
    readonly hostName: string,
    readonly runtime: RuntimeName,
  ) {}

  get nodeName(): string {
    return this.hostName.toLowerCase();
  }

  /**
   * As it is when no kubeadm is at work on the host; that is waited for. Throws `kubeadm_failed` when it takes more
   * than ten minutes.
   */
  state(): Promise<NodeState> {
    return this.look(`${waitScript}${stateScript}`);
  }

  /** The same at once, whatever is at work on the host. */
  currentState(): Promise<NodeState> {
    return this.look(stateScript);
  }

  private async look(script: string): Promise<NodeState> {
    const { exitCode, stdout, stderr } = await this.connection.exec(['sh', '-c', script], {
      sudo: true,
      signal: this.signal,
      stallTimeoutMs: 660_000,
    });
    if (exitCode !== 0)
      throw new AppError('kubeadm_failed', { detail: `${this.hostName}: ${stderr.trim().slice(-500)}` });
    const lines = stdout
      .split('\n', maxLines)
      .map((line) => [line.slice(0, line.indexOf('=')), cleanLine(line.slice(line.indexOf('=') + 1))] as const);
    const valueOf = (wanted: string) => lines.find(([key]) => key === wanted)?.[1] || undefined;
    return {
      files: new Set(lines.flatMap(([key, value]) => (key === 'file' ? value : []))),
      authority: valueOf('authority'),
      apiServerVersion: valueOf('apiServer'),
      isUnfinished: valueOf('unfinished') !== undefined,
    };
  }

  /** The address of the host's own that the connection came to; undefined where that leads nowhere else. */
  async address(): Promise<string | undefined> {
    const { stdout } = await this.connection.exec(['sh', '-c', 'echo "$SSH_CONNECTION"'], { signal: this.signal });
    const address = stdout.trim().split(' ')[2] ?? '';
    return /^[0-9A-Fa-f.:]+$/.test(address) && !/^(?:127\.|::1$|fe80:)/i.test(address) ? address : undefined;
  }

  /**
   * Runs kubeadm with a configuration, if one is given, that nobody else can read and that is gone afterwards. It goes
   * on when the connection breaks. Returns standard output where `output` is `kept`. Throws `kubeadm_failed` with the
   * end of what it complains about, `host_timeout`, `host_unreachable`.
   */
  async kubeadm(
    argv: string[],
    { config = '', output = 'dropped', timeoutMs = 900_000 }: KubeadmOptions = {},
  ): Promise<string> {
    const command = ['sh', '-c', kubeadmScript, 'sh', String(Buffer.byteLength(config)), output, ...argv];
    const { exitCode, stdout, stderr } = await this.connection.exec(command, {
      sudo: true,
      stdin: config,
      signal: this.signal,
      stallTimeoutMs: timeoutMs,
    });
    if (exitCode === 0) return stdout;
    const words = maskKubeadmSecrets((stderr || `it ended with ${exitCode}`).trim()).slice(-500);
    throw new AppError('kubeadm_failed', { detail: `${this.hostName}: kubeadm ${argv.join(' ')}: ${words}`, exitCode });
  }

  /** Runs kubectl as the administrator of the cluster. Throws `code` with its words. */
  async kubectl(
    argv: string[],
    { stdin = '', timeoutMs = 60_000, code = 'kubernetes_api_failed' }: KubectlOptions = {},
  ): Promise<string> {
    const { exitCode, stdout, stderr } = await this.connection.exec(['kubectl', '--kubeconfig', adminConf, ...argv], {
      sudo: true,
      stdin,
      signal: this.signal,
      stallTimeoutMs: timeoutMs,
    });
    if (exitCode === 0) return stdout;
    const words = maskKubeadmSecrets((stderr || stdout || `it ended with ${exitCode}`).trim()).slice(-500);
    throw new AppError(code, { detail: `${this.hostName}: kubectl ${argv.slice(0, 3).join(' ')}: ${words}` });
  }

  /** True when the API answers that it is ready. */
  async isApiReady(): Promise<boolean> {
    const argv = ['kubectl', '--kubeconfig', adminConf, '--request-timeout=10s', 'get', '--raw=/readyz'];
    return (
      (await this.connection.exec(argv, { sudo: true, signal: this.signal, stallTimeoutMs: 30_000 })).exitCode === 0
    );
  }

  /** All nodes of the cluster. Throws `kubernetes_api_failed`. */
  async nodes(): Promise<ClusterNode[]> {
    const lines = (await this.kubectl(['get', 'nodes', '-o', `jsonpath=${jsonPath}`]))
      .split('\n', maxLines)
      .map((line) => cleanLine(line, 500));
    return lines.flatMap((line) => {
      const [, name, version, ready, unschedulable] =
        /^(\S+) v?(\S*) ready=(\w*) unschedulable=(\w*)$/.exec(line) ?? [];
      return name === undefined || version === undefined
        ? []
        : { name, version, ready: ready === 'True', schedulable: unschedulable !== 'true' };
    });
  }

  /** One node; undefined when the cluster has none of this name. Throws `kubernetes_api_failed`. */
  async node(name: string): Promise<ClusterNodeDetails | undefined> {
    const output = await this.kubectl(['get', 'node', name, '--ignore-not-found', '-o', 'json']);
    if (output.trim() === '') return undefined;
    let node: z.infer<typeof nodeDocument>;
    try {
      node = nodeDocument.parse(JSON.parse(output));
    } catch {
      throw new AppError('kubernetes_api_failed', {
        detail: `${this.hostName}: kubectl get node ${name} gave what is no node`,
      });
    }
    return {
      name,
      ready: node.status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') ?? false,
      version: cleanLine(node.status?.nodeInfo?.kubeletVersion ?? '').replace(/^v/, ''),
      schedulable: node.spec?.unschedulable !== true,
      isControlPlane: controlPlaneLabels.some((label) => label in (node.metadata?.labels ?? {})),
      annotations: node.metadata?.annotations ?? {},
    };
  }

  /**
   * What another host needs to join, good for 15 minutes; `config` is a file of `kubeadm init`. Never to be stored,
   * logged, or an argument of a command.
   */
  async createJoinSecrets(config: string, isControlPlane: boolean): Promise<JoinSecrets> {
    const said = await this.kubeadm(['token', 'create', '--print-join-command'], {
      config,
      output: 'kept',
      timeoutMs: 120_000,
    });
    const [, apiServerEndpoint] = /kubeadm join (\S+:\d+)/.exec(said) ?? [];
    const [token] = /\b[a-z0-9]{6}\.[a-z0-9]{16}\b/.exec(said) ?? [];
    const [caCertHash] = /\bsha256:[0-9a-f]{64}\b/.exec(said) ?? [];
    if (!apiServerEndpoint || !token || !caCertHash)
      throw new AppError('kubeadm_failed', {
        detail: `${this.hostName}: kubeadm token create printed no join command`,
      });
    if (!isControlPlane) return { apiServerEndpoint, token, caCertHash, certificateKey: undefined };
    const uploaded = await this.kubeadm(['init', 'phase', 'upload-certs', '--upload-certs'], {
      config,
      output: 'kept',
      timeoutMs: 120_000,
    });
    const [certificateKey] = /\b[0-9a-f]{64}\b/.exec(uploaded) ?? [];
    if (!certificateKey)
      throw new AppError('kubeadm_failed', { detail: `${this.hostName}: kubeadm upload-certs printed no key` });
    return { apiServerEndpoint, token, caCertHash, certificateKey };
  }

  /** Asks every second, for so long at the most. */
  async isWithin(timeoutMs: number, condition: () => Promise<boolean>): Promise<boolean> {
    const deadline = Date.now() + timeoutMs;
    while (!(await condition())) {
      if (Date.now() >= deadline) return false;
      await delay(1_000, undefined, { signal: this.signal });
    }
    return true;
  }
}

interface KubeadmOptions {
  /** A file for --config. */
  config?: string;
  output?: 'kept' | 'dropped';
  /** Default 15 minutes: images are pulled. */
  timeoutMs?: number;
}

interface KubectlOptions {
  stdin?: string;
  timeoutMs?: number;
  code?: 'kubernetes_api_failed' | 'drain_failed';
}

const nodeDocument = z.object({
  metadata: z
    .object({
      labels: z.record(z.string(), z.string()).nullish(),
      annotations: z.record(z.string(), z.string()).nullish(),
    })
    .optional(),
  spec: z.object({ unschedulable: z.boolean().optional() }).optional(),
  status: z
    .object({
      conditions: z.array(z.object({ type: z.string().optional(), status: z.string().optional() })).nullish(),
      nodeInfo: z.object({ kubeletVersion: z.string().optional() }).optional(),
    })
    .optional(),
});
