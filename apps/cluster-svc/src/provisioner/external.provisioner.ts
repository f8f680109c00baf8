import type { Found, Provisioner, Target } from './provisioner.schema.js';

/**
 * Someone else runs the installer: what Airdock does for it, images on every node and the configuration, is done for
 * all provisioners.
 */
export class ExternalProvisioner implements Provisioner {
  async check(): Promise<void> {}

  async checkUpgrade(): Promise<void> {}

  async create(): Promise<void> {}

  async find({
    kubernetesVersion,
    provisionerId,
  }: Pick<Target, 'kubernetesVersion' | 'provisionerId'>): Promise<Found> {
    return { kubernetesVersion, provisionerId, fields: undefined };
  }

  async upgradeNode(): Promise<void> {}
}
