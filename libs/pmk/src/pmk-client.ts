/**
 * A client of qbert, the control plane of PMK, as far as Airdock makes clusters with it. qbert's source is not public:
 * what is here rests on its API document, and on what public clients of it send and read. Sources:
 * https://github.com/platform9/terraform-provider-pf9/blob/main/openapi-spec/pf9-2.0.yml,
 * https://github.com/platform9/pf9ctl/blob/main/pkg/qbert/qbert.go
 */
import { AppError } from '@airdock/core/errors';
import { type PmkContainerRuntime, type PmkCreateBody, type PmkRegistryField } from '@airdock/core/pmk/create-body';
import { z } from 'zod';
import { type PmkConnection, PmkHttp, type PmkHttpOptions } from './pmk-http.js';

export type { PmkConnection, PmkHttpOptions };

/** A cluster as qbert shows it. */
export interface PmkCluster extends Record<PmkRegistryField, string> {
  uuid: string;
  name: string;
  /** Stays the old one until an upgrade is through. */
  kubeRoleVersion: string;
  /** The version that a running upgrade leads to. */
  upgradingTo: string | null;
  /** creating, converging, updating, upgrading or deleting; success or error when that has ended. */
  taskStatus: string;
  /** Why the last task ended in `error`. */
  taskError?: string | undefined;
  /** `ok`; empty when PMK says nothing. */
  status: string;
  canUpgrade: boolean;
  /** What an upgrade of type `minor` leads to, if there is one. */
  minorUpgradeRoleVersion: string | null;
  patchUpgradeRoleVersion: string | null;
  containersCidr: string;
  servicesCidr: string;
}

/** A node as qbert shows it. */
export interface PmkNode {
  uuid: string;
  name: string;
  primaryIp: string;
  /** The cluster that it is attached to. */
  clusterUuid: string | null;
  isMaster: boolean;
  /** ok, converging or failed. */
  status: string;
  kubeRoleVersion?: string | undefined;
}

/** What an upgrade is asked for with. */
export interface PmkUpgradeBody {
  /** Workers upgraded at a time, 1 to 100. Default: one node at a time, masters first. */
  batchUpgradePercent?: number | undefined;
  /** The workers to upgrade together, by uuid. */
  batchUpgradeNodes?: readonly string[] | undefined;
  containerRuntime?: PmkContainerRuntime | undefined;
}

// What is not set is null, empty or not there.
const text = z
  .string()
  .nullish()
  .transform((value) => value ?? '');
const textOrNull = text.transform((value) => value || null);
const flag = z
  .union([z.boolean(), z.literal([0, 1])])
  .nullish()
  .transform(Boolean);

const clusterSchema = z.object({
  uuid: z.string().min(1),
  name: z.string(),
  kubeRoleVersion: text,
  upgradingTo: textOrNull,
  taskStatus: text,
  taskError: text.transform((value) => value || undefined),
  status: text,
  canUpgrade: flag,
  minorUpgradeRoleVersion: textOrNull,
  patchUpgradeRoleVersion: textOrNull,
  containersCidr: text,
  servicesCidr: text,
  dockerPrivateRegistry: text,
  quayPrivateRegistry: text,
  gcrPrivateRegistry: text,
  k8sPrivateRegistry: text,
});
const nodeSchema = z
  .object({
    uuid: z.string().min(1),
    name: text,
    primaryIp: text,
    clusterUuid: textOrNull,
    isMaster: flag,
    status: text,
    kubeRoleVersion: text,
    // What the console of PMK reads.
    actualKubeRoleVersion: text,
  })
  .transform(({ actualKubeRoleVersion, kubeRoleVersion, ...node }): PmkNode => {
    const version = actualKubeRoleVersion || kubeRoleVersion;
    return { ...node, ...(version ? { kubeRoleVersion: version } : {}) };
  });
// Clusters of other kinds are among them, with other fields.
const listedSchema = z.array(z.looseObject({ name: z.string().nullish() }));
const createdSchema = z.object({ uuid: z.string().min(1) });
const poolsSchema = z.array(z.object({ name: z.string(), uuid: z.string().min(1) }));
// The API document does not say what the answer looks like; public clients read `roles`.
const versionsSchema = z.union([
  z
    .object({ roles: z.array(z.object({ roleVersion: z.string().min(1) })) })
    .transform(({ roles }) => roles.map(({ roleVersion }) => roleVersion)),
  z.array(z.string().min(1)),
]);

/**
 * All methods throw what `PmkHttp` throws: `pmk_unavailable` when trying again may help, `pmk_unauthorized`,
 * `pmk_refused` with PMK's own words, `pmk_unexpected`, and the signal's reason. Many calls may run at a time; they
 * share one login. There is nothing to close.
 */
export class PmkClient {
  readonly #http: PmkHttp;

  /** Throws `configuration_invalid` for a URL that cannot be one of a DU. */
  constructor(connection: PmkConnection, password: string, options: PmkHttpOptions = {}) {
    this.#http = new PmkHttp(connection, password, options);
  }

  /**
   * Creates a cluster without nodes; its uuid. Not idempotent: called twice, PMK has two clusters of one name, and a
   * call that failed with `pmk_unavailable` may have created one. So callers look with `findCluster` first, every time.
   */
  async createCluster(body: PmkCreateBody, signal?: AbortSignal): Promise<string> {
    return (await this.#http.json({ method: 'POST', path: '/clusters', body, signal }, createdSchema)).uuid;
  }

  /**
   * Attaches those of the nodes that are not attached to this cluster yet. Throws `host_in_cluster`, before anything is
   * changed, when one of them belongs to another cluster. Nodes that are attached already keep the role that they have.
   */
  async attachNodes(
    clusterUuid: string,
    nodes: readonly { uuid: string; isMaster: boolean }[],
    signal?: AbortSignal,
  ): Promise<void> {
    const attached = new Map((await this.listNodes(signal)).map((node) => [node.uuid, node]));
    const taken = nodes
      .flatMap(({ uuid }) => attached.get(uuid) ?? [])
      .filter((node) => node.clusterUuid && node.clusterUuid !== clusterUuid);
    if (taken.length > 0) {
      const names = taken.map(({ uuid, name, clusterUuid }) => `${name || uuid} belongs to cluster ${clusterUuid}`);
      throw new AppError('host_in_cluster', {
        detail: names.join(', ').slice(0, 700),
        nodes: taken.map(({ uuid }) => uuid),
      });
    }
    const missing = nodes.filter(({ uuid }) => attached.get(uuid)?.clusterUuid !== clusterUuid);
    if (missing.length === 0) return;
    // Here, unlike in what it answers, qbert's document and its public clients have a boolean.
    const body = missing.map(({ uuid, isMaster }) => ({ uuid, isMaster }));
    await this.#http.send({ method: 'POST', path: `${clusterPath(clusterUuid)}/attach`, body, signal });
  }

  /**
   * By its name; undefined when there is none. Throws `pmk_unexpected` when there are several: nobody can say which one
   * is meant.
   */
  async findCluster(name: string, signal?: AbortSignal): Promise<PmkCluster | undefined> {
    const named = listedSchema
      .transform((list) => list.filter((cluster) => cluster.name === name))
      .pipe(z.array(clusterSchema));
    const [cluster, ...others] = await this.#http.json({ method: 'GET', path: '/clusters', signal }, named);
    if (cluster && others.length > 0) {
      const uuids = [cluster, ...others].map(({ uuid }) => uuid);
      throw new AppError('pmk_unexpected', {
        detail: `there are ${uuids.length} clusters named ${name}: ${uuids.join(', ')}`.slice(0, 700),
      });
    }
    return cluster;
  }

  /** Undefined when PMK knows no such cluster, which v3 of its API says with 400. */
  async getCluster(uuid: string, signal?: AbortSignal): Promise<PmkCluster | undefined> {
    try {
      return await this.#http.json({ method: 'GET', path: clusterPath(uuid), signal }, clusterSchema);
    } catch (error) {
      const status = error instanceof AppError && error.code === 'pmk_refused' ? error.details.pmkStatus : undefined;
      if (status === 404 || (status === 400 && this.#http.apiVersion === 'v3')) return undefined;
      throw error;
    }
  }

  /** All nodes of the project, those without a cluster among them. */
  async listNodes(signal?: AbortSignal): Promise<PmkNode[]> {
    return this.#http.json({ method: 'GET', path: '/nodes', signal }, z.array(nodeSchema));
  }

  /** The uuid of the pool that nodes of one's own are in. */
  async defaultNodePool(signal?: AbortSignal): Promise<string> {
    const pools = await this.#http.json({ method: 'GET', path: '/nodePools', signal }, poolsSchema);
    const pool = pools.find(({ name }) => name === 'defaultPool');
    if (!pool) throw new AppError('pmk_unexpected', { detail: 'there is no node pool named defaultPool' });
    return pool.uuid;
  }

  /** What `kubeRoleVersion` of a new cluster may be, in PMK's order. */
  async supportedVersions(signal?: AbortSignal): Promise<string[]> {
    return this.#http.json({ method: 'GET', path: '/clusters/supportedRoleVersions', signal }, versionsSchema);
  }

  /**
   * Starts an upgrade to the version that the cluster offers for the type, which callers compare with the one they want
   * first. Not idempotent: callers look at `upgradingTo` and `kubeRoleVersion` first, every time.
   */
  async upgradeCluster(
    uuid: string,
    type: 'minor' | 'patch',
    body: PmkUpgradeBody = {},
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#http.send({ method: 'POST', path: `${clusterPath(uuid)}/upgrade?type=${type}`, body, signal });
  }

  /**
   * Starts the deletion; the cluster is gone when `getCluster` finds it no more. One that is not there counts as
   * deleted.
   */
  async deleteCluster(uuid: string, signal?: AbortSignal): Promise<void> {
    try {
      await this.#http.send({ method: 'DELETE', path: clusterPath(uuid), signal });
    } catch (error) {
      if (error instanceof AppError && error.code === 'pmk_refused' && !(await this.getCluster(uuid, signal))) return;
      throw error;
    }
  }
}

const clusterPath = (uuid: string): string => `/clusters/${encodeURIComponent(uuid)}`;
