import { getRegistry } from '@airdock/adapters/api-clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { Injectable } from '@nestjs/common';
import type { ClusterDefaults } from './cluster-defaults.schema.js';

/** What a new cluster is created with: it follows the registry, and keeps nothing of its own. */
@Injectable()
export class ClusterDefaultsService {
  constructor(private readonly clients: ServiceClients) {}

  async get(): Promise<ClusterDefaults> {
    const { data } = await getRegistry({ client: this.clients.registry, throwOnError: true });
    const host = data.host ?? '';
    return {
      registryMode: data.mode,
      fields: { dockerPrivateRegistry: host, quayPrivateRegistry: host, gcrPrivateRegistry: host, k8sPrivateRegistry: host },
      minKubernetesVersion: '1.20.0',
    };
  }
}
