import { AppError, fromProblem, type Problem } from '@airdock/core/errors';
import { type Client, createClient, createConfig } from './generated/client/index.js';

export type { Client };

export interface ServiceAddresses {
  registry: string;
  image: string;
  host: string;
  cluster: string;
  backup: string;
}

/** A client of one service or of the whole DU. Failed calls throw AppErrors: the service's own problem, or `dependency_unavailable`. */
export function createServiceClient(baseUrl: string, token: string): Client {
  const client = createClient(createConfig({ baseUrl, throwOnError: true, headers: { authorization: `Bearer ${token}` } }));
  client.interceptors.error.use((error, response) => {
    if (error instanceof AppError || (error as Error | undefined)?.name === 'AbortError') return error;
    if (typeof error === 'object' && error !== null && 'code' in error && 'nextStep' in error) return fromProblem(error as Problem);
    return new AppError(
      'dependency_unavailable',
      { detail: response ? `${baseUrl} answered ${response.status}` : `${baseUrl} did not answer` },
      { cause: error },
    );
  });
  return client;
}

/** A client for each service, as services use each other. */
export class ServiceClients implements Record<keyof ServiceAddresses, Client> {
  readonly registry: Client;
  readonly image: Client;
  readonly host: Client;
  readonly cluster: Client;
  readonly backup: Client;

  constructor(addresses: ServiceAddresses, token: string) {
    this.registry = createServiceClient(addresses.registry, token);
    this.image = createServiceClient(addresses.image, token);
    this.host = createServiceClient(addresses.host, token);
    this.cluster = createServiceClient(addresses.cluster, token);
    this.backup = createServiceClient(addresses.backup, token);
  }
}
