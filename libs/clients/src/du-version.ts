import { AppError } from '@airdock/core/errors';
import { getDu } from './generated/sdk.gen.js';
import type { Client } from './service-clients.js';

/**
 * Of the DU now, as registry-svc says it: an upgrade changes it. `configured` where registry-svc knows of no upgrades.
 * Throws what the request throws.
 */
export async function duVersionNow(client: Client, configured: string): Promise<string> {
  try {
    return (await getDu({ client, throwOnError: true })).data.version;
  } catch (error) {
    if (error instanceof AppError && error.family === 'notFound') return configured;
    throw error;
  }
}
