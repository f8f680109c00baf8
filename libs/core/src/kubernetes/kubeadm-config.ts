/**
 * The files that kubeadm makes nodes by, as text, and what has to be known about its versions for that. Format:
 * https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/ and its predecessors v1beta2, v1beta3.
 */
import { AppError } from '../errors.js';
import { type KubernetesVersion, parseKubernetesVersion } from '../kubernetes-version.js';

/** What every configuration of kubeadm says. */
export interface NodeSettings {
  /** `1.20.11`; a PMK build number is left out of what kubeadm gets. */
  kubernetesVersion: string;
  /** `localhost:5100` */
  imageRepository: string;
  /** See `criSocketOf`. */
  criSocket: string;
  /** Of the containers that hold a pod together; Docker is told by the kubelet, containerd by its own configuration. */
  pauseImage: string;
  /** As Kubernetes shows it: lower case. */
  nodeName: string;
  /**
   * Where the API server of a control plane is found; undefined leaves it to kubeadm, which takes the address of the
   * default route.
   */
  advertiseAddress: string | undefined;
}

/** What the first control plane is made with. */
export interface InitSettings extends NodeSettings {
  podSubnet: string;
  serviceSubnet: string;
  /** `address:port` that all nodes reach the API at. Without it no second control plane could join later. */
  controlPlaneEndpoint: string;
}

/** What a further node joins with. */
export interface JoinSettings extends NodeSettings {
  /** `address:port` */
  apiServerEndpoint: string;
  token: string;
  /** `sha256:…` of the public key of the cluster's certificate authority. */
  caCertHash: string;
  /** Of the certificates that a further control plane fetches; undefined for a worker. */
  certificateKey: string | undefined;
}

/** How long a token is good that a node joins with. */
export const tokenTtl = '15m0s';

/**
 * `1.20.11` or `1.20.11-pmk.2038` as kubeadm, packages and images have it: `1.20.11`. Throws
 * `kubernetes_version_unsupported`.
 */
export function plainVersion(text: string): string {
  const { major, minor, patch } = parseKubernetesVersion(text);
  return `${major}.${minor}.${patch}`;
}

/** True when `version` is `minor` (of Kubernetes 1) or later. */
const isFrom = ({ major, minor }: KubernetesVersion, from: number): boolean => major > 1 || minor >= from;

/**
 * v1beta2 is read by kubeadm 1.15 to 1.26, v1beta3 from 1.22 on, v1beta4 from 1.31 on. Of the fields used here v1beta4
 * alone differs: extra arguments of the kubelet are a list of `name` and `value` there, not a map.
 */
export function kubeadmApiVersion(kubernetesVersion: string): 'v1beta2' | 'v1beta3' | 'v1beta4' {
  const version = parseKubernetesVersion(kubernetesVersion);
  if (isFrom(version, 31)) return 'v1beta4';
  return isFrom(version, 22) ? 'v1beta3' : 'v1beta2';
}

/**
 * Where the kubelet finds the runtime. Throws `runtime_unsupported` for Docker from Kubernetes 1.24 on, which has no
 * shim for it any more.
 */
export function criSocketOf(runtime: 'docker' | 'containerd', kubernetesVersion: string): string {
  const hasShim = !isFrom(parseKubernetesVersion(kubernetesVersion), 24);
  if (runtime === 'docker') {
    if (!hasShim)
      throw new AppError('runtime_unsupported', { detail: `Kubernetes ${kubernetesVersion} has no dockershim` });
    return dockerShim;
  }
  return `${hasShim ? '' : 'unix://'}/run/containerd/containerd.sock`;
}
const dockerShim = '/var/run/dockershim.sock';

/**
 * What `dns.imageRepository` has to be for CoreDNS to have the name in the local registry that the flat rewriting gave
 * it, as all other images have; undefined where nothing has to be said. Upstream it is `k8s.gcr.io/coredns` up to
 * Kubernetes 1.20 and `k8s.gcr.io/coredns/coredns` from 1.21 on, so here it is `REPOSITORY/coredns` and
 * `REPOSITORY/coredns/coredns`. kubeadm 1.21.0 and 1.21.1 ask for just that; from 1.21.2 on kubeadm appends `coredns`
 * once to any repository but its own default: https://github.com/kubernetes/kubernetes/pull/102502
 */
export function dnsRepositoryOf(imageRepository: string, kubernetesVersion: string): string | undefined {
  const { major, minor, patch } = parseKubernetesVersion(kubernetesVersion);
  const isAppendedOnce = major > 1 || minor > 21 || (minor === 21 && patch >= 2);
  return isAppendedOnce ? `${imageRepository}/coredns` : undefined;
}

/**
 * The file of `kubeadm init`: InitConfiguration, ClusterConfiguration, KubeletConfiguration. It has no secrets: kubeadm
 * makes the first token by itself, and here it only hears that it is good for 15 minutes, not 24 hours.
 */
export function renderInitConfig(settings: InitSettings): string {
  const { kubernetesVersion, imageRepository, podSubnet, serviceSubnet, controlPlaneEndpoint, advertiseAddress } =
    settings;
  const apiVersion = `kubeadm.k8s.io/${kubeadmApiVersion(kubernetesVersion)}`;
  const dnsRepository = dnsRepositoryOf(imageRepository, kubernetesVersion);
  return renderDocuments([
    {
      ...{ apiVersion, kind: 'InitConfiguration' },
      bootstrapTokens: [{ ttl: tokenTtl }],
      ...(advertiseAddress ? { localAPIEndpoint: { advertiseAddress } } : {}),
      nodeRegistration: nodeRegistration(settings),
    },
    {
      ...{ apiVersion, kind: 'ClusterConfiguration' },
      kubernetesVersion: `v${plainVersion(kubernetesVersion)}`,
      controlPlaneEndpoint,
      imageRepository,
      ...(dnsRepository ? { dns: { imageRepository: dnsRepository } } : {}),
      networking: { podSubnet, serviceSubnet },
    },
    { apiVersion: 'kubelet.config.k8s.io/v1beta1', kind: 'KubeletConfiguration' },
  ]);
}

/** The file of `kubeadm join`. It has secrets in it: the token, and for a control plane the key of the certificates. */
export function renderJoinConfig(settings: JoinSettings): string {
  const { kubernetesVersion, apiServerEndpoint, token, caCertHash, certificateKey, advertiseAddress } = settings;
  return renderDocuments([
    {
      ...{ apiVersion: `kubeadm.k8s.io/${kubeadmApiVersion(kubernetesVersion)}`, kind: 'JoinConfiguration' },
      discovery: { bootstrapToken: { apiServerEndpoint, token, caCertHashes: [caCertHash] } },
      ...(certificateKey
        ? { controlPlane: { certificateKey, ...(advertiseAddress ? { localAPIEndpoint: { advertiseAddress } } : {}) } }
        : {}),
      nodeRegistration: nodeRegistration(settings),
    },
  ]);
}

function nodeRegistration({ kubernetesVersion, nodeName, criSocket, pauseImage }: NodeSettings): Fields {
  const argument = 'pod-infra-container-image';
  const isList = kubeadmApiVersion(kubernetesVersion) === 'v1beta4';
  const kubeletExtraArgs = isList ? [{ name: argument, value: pauseImage }] : { [argument]: pauseImage };
  return { name: nodeName, criSocket, ...(criSocket === dockerShim ? { kubeletExtraArgs } : {}) };
}

/** Hides tokens, keys of certificates and hashes of certificate authorities in what kubeadm says. */
export function maskKubeadmSecrets(text: string): string {
  return text.replace(/\b[a-z0-9]{6}\.[a-z0-9]{16}\b/g, '***').replace(/\b[0-9a-f]{64}\b/gi, '***');
}

type Value = string | Fields | (string | Fields)[];
interface Fields {
  [key: string]: Value;
}

const renderDocuments = (documents: Fields[]): string =>
  documents.map((fields) => `---\n${render(fields, '')}`).join('');

/**
 * As YAML in block style. All strings are quoted as in JSON, which YAML 1.2 contains: none can be taken for something
 * else, nor end early.
 */
function render(fields: Fields, indent: string): string {
  return Object.entries(fields)
    .map(([key, value]) => {
      if (typeof value === 'string') return `${indent}${key}: ${JSON.stringify(value)}\n`;
      if (!Array.isArray(value)) return `${indent}${key}:\n${render(value, `${indent}  `)}`;
      const items = value.map((item) => {
        const text = typeof item === 'string' ? `${indent}  ${JSON.stringify(item)}\n` : render(item, `${indent}  `);
        return `${indent}- ${text.slice(indent.length + 2)}`;
      });
      return `${indent}${key}:\n${items.join('')}`;
    })
    .join('');
}
