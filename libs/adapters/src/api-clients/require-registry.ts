import { AppError } from '@airdock/core/errors';
import { RegistryStorage } from '../oci-client/registry-storage.js';
import { getRegistry } from './generated/sdk.gen.js';
import type { Client } from './service-clients.js';

export interface RequiredRegistry {
  url: string;
  /** No pushes now: the DU is being upgraded. */
  isFenced: boolean;
  readOnlyUrl: string | null;
  /** Its own folder, when that is one of this machine and blobs may be placed in it. */
  storage: RegistryStorage | undefined;
  /** The folder in any case; null for a registry of others. */
  storageDir: string | null;
}

/** The registry to push to. Throws `registry_off`, and `registry_unavailable` while registry-svc knows that what answers there is not it. */
export async function requireRegistry(client: Client): Promise<RequiredRegistry> {
  const { data } = await getRegistry({ client, throwOnError: true });
  if (!data.url) throw new AppError('registry_off');
  if (data.error) throw new AppError('registry_unavailable', { detail: data.error.title });
  const storage = data.storage?.id ? await RegistryStorage.open({ folder: data.storage.path, id: data.storage.id }) : undefined;
  // Who does not push, e.g. a restore, gets past the fence.
  return {
    url: data.maintenanceUrl ?? data.url,
    isFenced: Boolean(data.fence),
    readOnlyUrl: data.readOnlyUrl,
    storage,
    storageDir: data.storage?.path ?? null,
  };
}
