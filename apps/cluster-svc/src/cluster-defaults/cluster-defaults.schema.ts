import { registryModes } from '@airdock/core/registry-mode';
import { z } from 'zod';

/** The registry fields of a cluster, as PMK names them: bare host:port, or empty for the public registries. */
export const RegistryFields = z
  .object({
    dockerPrivateRegistry: z.string(),
    quayPrivateRegistry: z.string(),
    gcrPrivateRegistry: z.string(),
    k8sPrivateRegistry: z.string(),
  })
  .meta({ id: 'RegistryFields' });
export type RegistryFields = z.infer<typeof RegistryFields>;

/** Where nodes get Docker's packages from, as PMK names it; empty where the DU serves none. */
export const PackageFields = z
  .object({ dockerCentosPackageRepoUrl: z.string(), dockerUbuntuPackageRepoUrl: z.string() })
  .meta({ id: 'PackageFields' });
export type PackageFields = z.infer<typeof PackageFields>;

export const ClusterDefaults = z
  .object({
    registryMode: z.enum(registryModes).describe('Of the DU; new clusters follow it'),
    fields: RegistryFields,
    packages: PackageFields,
    mirrors: z.array(z.string()).describe('Registry mirrors of the nodes: REGISTRY_MIRRORS'),
    pmk: z
      .record(z.string(), z.string())
      .describe(
        "Merge into the control plane's create call: `POST /qbert/v4/{projectId}/clusters`. Empty while the registry is off, which changes nothing then",
      ),
    duVersion: z.string(),
    movesExistingClusters: z
      .boolean()
      .describe('Whether a cluster from before the registry joins it by an upgrade: from DU 5.3 on'),
    minKubernetesVersion: z.string().describe('The first version that can use a local registry'),
  })
  .meta({ id: 'ClusterDefaults' });
export type ClusterDefaults = z.infer<typeof ClusterDefaults>;
