import { registryModes } from '@airdock/platform/config';
import { z } from 'zod';

/** The registry fields of a cluster, as PMK names them: bare host:port, or empty for the public registries. */
export const RegistryFields = z
  .object({ dockerPrivateRegistry: z.string(), quayPrivateRegistry: z.string(), gcrPrivateRegistry: z.string(), k8sPrivateRegistry: z.string() })
  .meta({ id: 'RegistryFields' });
export type RegistryFields = z.infer<typeof RegistryFields>;

export const ClusterDefaults = z
  .object({
    registryMode: z.enum(registryModes).describe('Of the DU; new clusters follow it'),
    fields: RegistryFields.describe("Merge into the control plane's create call"),
    minKubernetesVersion: z.string().describe('The first version that can use a local registry'),
  })
  .meta({ id: 'ClusterDefaults' });
export type ClusterDefaults = z.infer<typeof ClusterDefaults>;
