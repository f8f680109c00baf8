import { setTimeout as delay } from 'node:timers/promises';
import { getRegistry } from '@airdock/clients/generated/sdk.gen';
import type { Registry } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { AppError, fromProblem } from '@airdock/core/errors';
import { RegistryStorage } from '../folder/registry-storage.js';

const lookMs = 500;
/** A collection keeps others away for as long as it takes to look through the storage three times. */
const collectingMs = 10 * 60 * 1000;

/** The registry, as far as a job may use it. */
export interface RequiredRegistry {
  /** What Airdock itself writes to and reads from, as `RegistryClient` takes it. */
  address: string;
  /** No pushes now: the DU is being upgraded. */
  isFenced: boolean;
  /** What tunnels lead to; null for a registry of others. */
  readOnlyAddress: string | null;
  /** Its own folder, when that is one of this machine and blobs may be placed in it. */
  storage: RegistryStorage | undefined;
  /**
   * Its own folder, when that is one of this machine: what is damaged there may be looked at and set aside, also where
   * blobs go over HTTP.
   */
  repairs: RegistryStorage | undefined;
  /** The folder in any case; null for a registry of others. */
  storageDir: string | null;
}

/**
 * `write` needs the storage that was there before, with a disk that takes writes; `read` needs that storage too, since
 * what is missing on another disk is not missing; `look` goes on with whatever is there.
 */
export type RegistryUse = 'write' | 'read' | 'look';

const goesOn = (use: RegistryUse, storageError: string): boolean =>
  use === 'look' || (use === 'read' && storageError === 'registry_storage_read_only');

/** What the registry is needed for, and whether to wait for it. */
export interface RequireRegistryOptions {
  /**
   * Whether to wait for the end of a garbage collection, which waits for the jobs that read or write images. Such a job
   * asks for the registry before it looks at anything in it. Default true.
   */
  waits?: boolean;
  /** What for. Default `write`. */
  use?: RegistryUse;
  /** Called when it has to wait. */
  onWait?: () => void;
  signal?: AbortSignal;
}

/**
 * The registry to push to. Throws `registry_off`, `registry_storage_changed` and `registry_storage_read_only` where its
 * use does not go on then, `registry_unavailable` while registry-svc knows that what answers there is not it,
 * `registry_collecting` after ten minutes of waiting, and the signal's reason.
 */
export async function requireRegistry(
  client: Client,
  { waits = true, use = 'write', onWait, signal }: RequireRegistryOptions = {},
): Promise<RequiredRegistry> {
  const deadline = Date.now() + collectingMs;
  let { data } = await getRegistry({ client, throwOnError: true });
  if (waits && data.collecting) onWait?.();
  while (waits && data.collecting) {
    if (Date.now() > deadline) throw new AppError('registry_collecting');
    await delay(lookMs, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted());
    ({ data } = await getRegistry({ client, throwOnError: true }));
  }
  assertUsable(data, use);
  const storage = data.storage?.id
    ? await RegistryStorage.open({ folder: data.storage.path, id: data.storage.id })
    : undefined;
  const { path = '', recordedId = null } = data.storage ?? {};
  const repairs =
    storage ??
    (recordedId !== null && !data.storageError
      ? await RegistryStorage.open({ folder: path, id: recordedId })
      : undefined);
  return {
    address: data.address ?? data.url,
    isFenced: Boolean(data.fence),
    readOnlyAddress: data.sockets?.readOnly ?? null,
    storage,
    repairs,
    storageDir: data.storage?.path ?? null,
  };
}

/**
 * The registry, as registry-svc has described it, may be used. Throws `registry_off`, `registry_target_forbidden`,
 * `registry_unavailable`, and what is wrong with its storage where the use does not go on then.
 */
export function assertUsable(registry: Registry, use: RegistryUse): asserts registry is Registry & { url: string } {
  const { url, error, storageError } = registry;
  if (!url) throw new AppError('registry_off');
  if (error?.code === 'registry_target_forbidden') throw fromProblem(error);
  if (error) throw new AppError('registry_unavailable', { detail: error.title });
  if (storageError && !goesOn(use, storageError.code)) throw fromProblem(storageError);
}
