import { renderHostsToml } from '@airdock/core/container-runtime/containerd-config';
import { mergeDaemonJson } from '@airdock/core/container-runtime/daemon-json';
import { renderRegistriesConf, renderRegistriesYaml } from '@airdock/core/container-runtime/registry-mirrors';
import { pmkCreateBody } from '@airdock/core/pmk/create-body';
import { CONFIG, type Config } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';
import { ClusterFacts } from '../cluster-facts/cluster-facts.service.js';
import type { ClusterConfiguration, RuntimeFile } from './cluster.schema.js';
import { ClusterService } from './cluster.service.js';

/** What whoever installs a cluster needs to know, and what points runtimes at the registry. */
@Injectable()
export class ClusterConfigurationService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly clusters: ClusterService,
    private readonly facts: ClusterFacts,
  ) {}

  async get(id: string): Promise<ClusterConfiguration> {
    const { name, kubernetesVersion, network, options, fields, packages, imageSetId, registryMode } =
      await this.clusters.get(id);
    const set = imageSetId ? await this.facts.imagesOf(imageSetId) : [];
    const references = this.facts.references(set, fields.k8sPrivateRegistry);
    const images = set.map(({ upstream }, index) => ({ upstream, reference: references[index] ?? '' }));
    // The pool is PMK's to name, and differs with each.
    const { nodePoolUuid: _, ...pmk } = pmkCreateBody({
      name,
      kubeRoleVersion: kubernetesVersion,
      nodePoolUuid: '',
      network,
      ...options,
      registries: fields,
      ...packages,
    });
    return { pmk, files: registryMode.effective === 'local' ? runtimeFiles(this.config) : [], images };
  }
}

/** Each as it looks where there was none before. */
export function runtimeFiles({
  mirroredUpstreams: upstreams,
  naming,
  registry: { port },
}: Pick<Config, 'mirroredUpstreams' | 'naming' | 'registry'>): RuntimeFile[] {
  const localRegistry = `localhost:${port}`;
  const mirrors = { upstreams, localRegistry, port, naming };
  const yaml = renderRegistriesYaml(mirrors);
  const noFallback = (version: string) =>
    `Start it with --disable-default-registry-endpoint (${version}), or it asks the upstream for what is missing here.`;
  return [
    {
      runtime: 'docker',
      path: '/etc/docker/daemon.json',
      text: mergeDaemonJson(null, `http://127.0.0.1:${port}`),
      note: 'A mirror acts on docker.io only: images of other upstreams have to be named by their local references.',
    },
    ...[...upstreams, localRegistry].map(
      (upstream): RuntimeFile => ({
        runtime: 'containerd',
        path: `/etc/containerd/certs.d/${upstream}/hosts.toml`,
        text: renderHostsToml(upstream, localRegistry, port, naming),
        note: 'config.toml needs config_path = "/etc/containerd/certs.d" for the registry of its CRI plugin.',
      }),
    ),
    { runtime: 'k3s', path: '/etc/rancher/k3s/registries.yaml', text: yaml, note: noFallback('k3s 1.29 and later') },
    { runtime: 'rke2', path: '/etc/rancher/rke2/registries.yaml', text: yaml, note: noFallback('RKE2 1.29 and later') },
    {
      runtime: 'cri-o',
      path: '/etc/containers/registries.conf.d/airdock.conf',
      text: renderRegistriesConf(mirrors),
      note: null,
    },
  ];
}
