import { BackupModule } from '@airdock/backup-svc/backup.module';
import { ClusterModule } from '@airdock/cluster-svc/cluster.module';
import { HostModule } from '@airdock/host-svc/host.module';
import { ImageModule } from '@airdock/image-svc/image.module';
import type { ServiceName } from '@airdock/platform/config';
import type { ServiceModule } from '@airdock/platform/service';
import { RegistryModule } from '@airdock/registry-svc/registry.module';

/** The five services of the DU. */
export const services: Record<ServiceName, ServiceModule> = {
  registry: RegistryModule,
  image: ImageModule,
  host: HostModule,
  cluster: ClusterModule,
  backup: BackupModule,
};
