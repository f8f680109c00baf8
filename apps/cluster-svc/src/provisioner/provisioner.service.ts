import { ServiceClients } from '@airdock/clients/service-clients';
import { CONFIG, type Config } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';
import type { ProvisionerName } from './cluster-shape.schema.js';
import { ExternalProvisioner } from './external.provisioner.js';
import { KubeadmProvisioner } from './kubeadm.provisioner.js';
import { PmkProvisioner } from './pmk.provisioner.js';
import type { Provisioner } from './provisioner.schema.js';

/** The provisioners, by name. */
@Injectable()
export class ProvisionerService {
  private readonly provisioners: Record<ProvisionerName, Provisioner>;

  constructor(@Inject(CONFIG) config: Config, clients: ServiceClients) {
    this.provisioners = {
      external: new ExternalProvisioner(),
      kubeadm: new KubeadmProvisioner(clients),
      pmk: new PmkProvisioner(config),
    };
  }

  get(name: ProvisionerName): Provisioner {
    return this.provisioners[name];
  }
}
