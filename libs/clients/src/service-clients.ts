import { AppError, fromProblem, type Problem } from '@airdock/core/errors';
import { makeDirectFetch } from '@airdock/outbound/direct-fetch';
import { type Client, createClient, createConfig } from './generated/client/index.js';
import { createWebhookEvent } from './generated/sdk.gen.js';
import type { WebhookEvent } from './generated/types.gen.js';

export type { Client };

/** Where a service answers. */
export interface ServiceEndpoint {
  url: string;
  /** The Unix socket that leads there; the URL's host and port then mean nothing. */
  socketPath?: string | undefined;
}

/**
 * A client of one service or of the whole DU, with a token, which is asked for anew with every call where it is a
 * function; without any by a socket that needs none. Failed calls throw AppErrors: the service's own problem, or
 * `dependency_unavailable`.
 */
export function createServiceClient(endpoint: string | ServiceEndpoint, token?: string | (() => string)): Client {
  const { url: baseUrl, socketPath } =
    typeof endpoint === 'string' ? { url: endpoint, socketPath: undefined } : endpoint;
  const client = createClient(createConfig({ baseUrl, throwOnError: true, fetch: makeDirectFetch({ socketPath }) }));
  if (token !== undefined)
    client.interceptors.request.use((request) => {
      request.headers.set('authorization', `Bearer ${typeof token === 'string' ? token : token()}`);
      return request;
    });
  client.interceptors.error.use((error, response) => {
    if (error instanceof AppError || (error as Error | undefined)?.name === 'AbortError') return error;
    if (typeof error === 'object' && error !== null && 'code' in error && 'nextStep' in error)
      return fromProblem(error as Problem);
    const where = socketPath ?? baseUrl;
    return new AppError(
      'dependency_unavailable',
      { detail: response ? `${where} answered ${response.status}` : `${where} did not answer` },
      { cause: error },
    );
  });
  return client;
}

const eventTimeoutMs = 10_000;

type ServiceName = 'registry' | 'image' | 'host' | 'cluster' | 'backup';

/** A client for each service, as services use each other. */
export class ServiceClients implements Record<ServiceName, Client> {
  readonly registry: Client;
  readonly image: Client;
  readonly host: Client;
  readonly cluster: Client;
  readonly backup: Client;

  constructor(endpoints: Record<ServiceName, ServiceEndpoint>, token: () => string) {
    this.registry = createServiceClient(endpoints.registry, token);
    this.image = createServiceClient(endpoints.image, token);
    this.host = createServiceClient(endpoints.host, token);
    this.cluster = createServiceClient(endpoints.cluster, token);
    this.backup = createServiceClient(endpoints.backup, token);
  }

  /** Hands an event to backup-svc, which sends webhooks. Throws as every call does. */
  async takeEvent({ id, type, payload, createdAt }: WebhookEvent): Promise<void> {
    const body = { id, type, payload, createdAt };
    await createWebhookEvent({
      client: this.backup,
      body,
      signal: AbortSignal.timeout(eventTimeoutMs),
      throwOnError: true,
    });
  }
}
