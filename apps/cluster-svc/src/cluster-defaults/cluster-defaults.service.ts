import { duVersionNow } from '@airdock/clients/du-version';
import { getRegistry, listPackageRepositories } from '@airdock/clients/generated/sdk.gen';
import type { PackageRepository } from '@airdock/clients/generated/types.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { duCapabilities } from '@airdock/core/du-version';
import { AppError } from '@airdock/core/errors';
import { parseKubernetesVersion, supportsLocalRegistry } from '@airdock/core/kubernetes-version';
import { type RegistryMode } from '@airdock/core/registry-mode';
import { CONFIG, type Config } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';
import type { ClusterDefaults, PackageFields, RegistryFields } from './cluster-defaults.schema.js';

const minKubernetesVersion = '1.20.0';

/** What a cluster with or without the registry is created with. */
export interface RegistrySettings {
  fields: RegistryFields;
  packages: PackageFields;
}

/** What a new cluster is created with: it follows the registry, and keeps nothing of its own. */
@Injectable()
export class ClusterDefaultsService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly clients: ServiceClients,
  ) {}

  async get(): Promise<ClusterDefaults> {
    const [duVersion, { data: registry }, { data: packageRepositories }] = await Promise.all([
      this.duVersion(),
      getRegistry({ client: this.clients.registry, throwOnError: true }),
      listPackageRepositories({ client: this.clients.host, throwOnError: true }),
    ]);
    // A registry of others is reached by its own address, without a tunnel.
    const external = registry.mode === 'external' && registry.url ? new URL(registry.url) : undefined;
    const host = external?.host ?? registry.host ?? '';
    const fields = {
      dockerPrivateRegistry: host,
      quayPrivateRegistry: host,
      gcrPrivateRegistry: host,
      k8sPrivateRegistry: host,
    };
    // Without a tunnel no host reaches the repositories.
    const isServed = registry.sockets !== null;
    const packages = {
      dockerCentosPackageRepoUrl: isServed ? dockerRepository(packageRepositories.items, 'yum') : '',
      dockerUbuntuPackageRepoUrl: isServed ? dockerRepository(packageRepositories.items, 'apt') : '',
    };
    const set = Object.entries({ ...fields, ...packages }).filter(([, value]) => value !== '');
    return {
      registryMode: registry.mode,
      fields,
      packages,
      mirrors: host && this.config.naming.includes('flat') ? [external?.origin ?? `http://${host}`] : [],
      pmk: host ? Object.fromEntries(set) : {},
      duVersion,
      movesExistingClusters: duCapabilities(duVersion).movesClusters,
      minKubernetesVersion,
    };
  }

  /** Of the DU now: an upgrade changes it. */
  private duVersion(): Promise<string> {
    return duVersionNow(this.clients.registry, this.config.duVersion);
  }

  /**
   * What the wanted registry mode means for a cluster of this version; without a wish the DU's mode. `isNew` is false
   * for one that joins by its upgrade. Throws `registry_off`, `kubernetes_version_unsupported`,
   * `du_version_unsupported`.
   */
  async forCluster(
    wanted: RegistryMode | undefined,
    kubernetesVersion: string,
    isNew: boolean,
  ): Promise<RegistrySettings & { registryMode: RegistryMode }> {
    const { registryMode, fields, packages, duVersion } = await this.get();
    const mode = wanted ?? registryMode;
    const version = parseKubernetesVersion(kubernetesVersion);
    if (mode === 'none') return { registryMode: mode, fields: noFields, packages };
    if (mode !== registryMode)
      throw new AppError('registry_off', {
        detail: `the DU's registry is ${registryMode}, and the cluster wants ${mode}`,
      });
    if (!supportsLocalRegistry(version))
      throw new AppError('kubernetes_version_unsupported', { detail: `${kubernetesVersion} is older than 1.20` });
    const { hasRegistry, movesClusters } = duCapabilities(duVersion);
    if (!hasRegistry) throw new AppError('du_version_unsupported', { detail: `${duVersion} has no local registry` });
    if (!isNew && !movesClusters)
      throw new AppError('du_version_unsupported', {
        detail: `${duVersion} has the registry, but moves no cluster to it`,
      });
    return { registryMode: mode, fields, packages };
  }
}

export const noFields: RegistryFields = {
  dockerPrivateRegistry: '',
  quayPrivateRegistry: '',
  gcrPrivateRegistry: '',
  k8sPrivateRegistry: '',
};

/** The repository of a format that is named for Docker, else its first. */
function dockerRepository(all: readonly PackageRepository[], format: PackageRepository['format']): string {
  const own = all.filter((one) => one.format === format);
  return (own.find(({ name }) => name.startsWith('docker')) ?? own[0])?.url ?? '';
}
