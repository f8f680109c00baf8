import { AppError } from '@airdock/core/errors';
import { getRegistry } from './generated/sdk.gen.js';
import type { Client } from './service-clients.js';

/** The registry to push to. Throws `registry_off`, and `registry_unavailable` while registry-svc knows that what answers there is not it. */
export async function requireRegistry(client: Client): Promise<{ url: string; readOnlyUrl: string | null }> {
  const { data } = await getRegistry({ client, throwOnError: true });
  if (!data.url) throw new AppError('registry_off');
  if (data.error) throw new AppError('registry_unavailable', { detail: data.error.title });
  return { url: data.url, readOnlyUrl: data.readOnlyUrl };
}
