import { describe, expect, it } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import {
  criSocketOf,
  dnsRepositoryOf,
  type InitSettings,
  kubeadmApiVersion,
  maskKubeadmSecrets,
  plainVersion,
  renderInitConfig,
  renderJoinConfig,
} from './kubeadm-config.js';

const settings: InitSettings = {
  kubernetesVersion: '1.20.11-pmk.2038',
  imageRepository: 'localhost:5100',
  criSocket: '/var/run/dockershim.sock',
  pauseImage: 'localhost:5100/pause:3.2',
  nodeName: 'node-1',
  advertiseAddress: '10.0.0.11',
  podSubnet: '10.20.0.0/16',
  serviceSubnet: '10.21.0.0/16',
  controlPlaneEndpoint: '10.0.0.11:6443',
};
const init = (change: Partial<InitSettings> = {}) =>
  parseAllDocuments(renderInitConfig({ ...settings, ...change })).map((document) => document.toJS());
const secrets = {
  apiServerEndpoint: '10.0.0.11:6443',
  token: 'abcdef.0123456789abcdef',
  caCertHash: `sha256:${'a'.repeat(64)}`,
};
const join = (certificateKey?: string, change: Partial<InitSettings> = {}) =>
  parse(renderJoinConfig({ ...settings, ...secrets, certificateKey, ...change })) as Record<string, unknown>;

describe('the configuration of kubeadm init', () => {
  it('says where images, the API and the runtime are', () => {
    expect(init()).toEqual([
      {
        apiVersion: 'kubeadm.k8s.io/v1beta2',
        kind: 'InitConfiguration',
        bootstrapTokens: [{ ttl: '15m0s' }],
        localAPIEndpoint: { advertiseAddress: '10.0.0.11' },
        nodeRegistration: {
          name: 'node-1',
          criSocket: '/var/run/dockershim.sock',
          kubeletExtraArgs: { 'pod-infra-container-image': 'localhost:5100/pause:3.2' },
        },
      },
      {
        apiVersion: 'kubeadm.k8s.io/v1beta2',
        kind: 'ClusterConfiguration',
        kubernetesVersion: 'v1.20.11',
        controlPlaneEndpoint: '10.0.0.11:6443',
        imageRepository: 'localhost:5100',
        networking: { podSubnet: '10.20.0.0/16', serviceSubnet: '10.21.0.0/16' },
      },
      { apiVersion: 'kubelet.config.k8s.io/v1beta1', kind: 'KubeletConfiguration' },
    ]);
  });

  it('leaves the pause image to containerd, and the address to kubeadm where it is not known', () => {
    const [first] = init({ criSocket: criSocketOf('containerd', '1.20.11'), advertiseAddress: undefined });
    expect(first.nodeRegistration).toEqual({ name: 'node-1', criSocket: '/run/containerd/containerd.sock' });
    expect(first).not.toHaveProperty('localAPIEndpoint');
  });

  it('keeps any text what it is', () => {
    const nodeName = 'a: "b"\n- c #\\ é 1.20';
    expect(init({ nodeName })[0].nodeRegistration.name).toBe(nodeName);
  });
});

describe('the configuration of kubeadm join', () => {
  it('has the secrets of a worker', () => {
    expect(join()).toEqual({
      apiVersion: 'kubeadm.k8s.io/v1beta2',
      kind: 'JoinConfiguration',
      discovery: {
        bootstrapToken: {
          apiServerEndpoint: '10.0.0.11:6443',
          token: secrets.token,
          caCertHashes: [secrets.caCertHash],
        },
      },
      nodeRegistration: expect.objectContaining({ name: 'node-1' }),
    });
  });

  it('has the key of the certificates for a control plane', () => {
    expect(join('f'.repeat(64)).controlPlane).toEqual({
      certificateKey: 'f'.repeat(64),
      localAPIEndpoint: { advertiseAddress: '10.0.0.11' },
    });
  });

  it('gives the arguments of the kubelet as a list where v1beta4 wants one', () => {
    const { apiVersion, nodeRegistration } = join(undefined, { kubernetesVersion: '1.31.6' });
    expect(apiVersion).toBe('kubeadm.k8s.io/v1beta4');
    expect(nodeRegistration).toMatchObject({
      kubeletExtraArgs: [{ name: 'pod-infra-container-image', value: 'localhost:5100/pause:3.2' }],
    });
  });
});

it.each([
  ['1.20.11', 'v1beta2'],
  ['1.21.14', 'v1beta2'],
  ['1.22.0', 'v1beta3'],
  ['1.30.9', 'v1beta3'],
  ['1.31.0', 'v1beta4'],
])('kubeadm %s reads %s', (version, apiVersion) => {
  expect(kubeadmApiVersion(version)).toBe(apiVersion);
});

it('Docker is a runtime up to Kubernetes 1.23', () => {
  expect(criSocketOf('docker', '1.23.17')).toBe('/var/run/dockershim.sock');
  expect(() => criSocketOf('docker', '1.24.0')).toThrow(expect.objectContaining({ code: 'runtime_unsupported' }));
  expect(criSocketOf('containerd', '1.24.0')).toBe('unix:///run/containerd/containerd.sock');
});

it.each([
  ['1.20.11', undefined],
  ['1.21.1', undefined],
  ['1.21.2', 'localhost:5100/coredns'],
  ['1.31.6', 'localhost:5100/coredns'],
])('CoreDNS of %s is asked for by its flat name', (version, repository) => {
  expect(dnsRepositoryOf('localhost:5100', version)).toBe(repository);
});

it('versions of PMK are plain ones for kubeadm', () => {
  expect(plainVersion('v1.20.11-pmk.2038')).toBe('1.20.11');
  expect(() => plainVersion('1.20')).toThrow(expect.objectContaining({ code: 'kubernetes_version_unsupported' }));
});

it('secrets are masked wherever kubeadm says them', () => {
  const said = `kubeadm join 10.0.0.1:6443 --token ${secrets.token} --discovery-token-ca-cert-hash ${secrets.caCertHash} --certificate-key ${'0f'.repeat(32)}`;
  expect(maskKubeadmSecrets(said)).toBe(
    'kubeadm join 10.0.0.1:6443 --token *** --discovery-token-ca-cert-hash sha256:*** --certificate-key ***',
  );
});
