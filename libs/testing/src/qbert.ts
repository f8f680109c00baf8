/**
 * A PMK control plane in this process: keystone, and qbert v3 and v4, as far as Airdock calls them. It is stricter than
 * the real one may be, and it has no clock: each GET of a cluster brings its task one step on, after it was answered.
 * The real one's source is not public. What is guessed here says so.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { parseKubernetesVersion } from '@airdock/core/kubernetes-version';
import { z } from 'zod';
import type { TestServer } from './servers.js';

export interface QbertOptions {
  /** Nodes that wait for a cluster. */
  nodes: { uuid: string; name: string; primaryIp: string }[];
  /** Default `admin@site.example`. */
  user?: string;
  /** Default: a random one. */
  password?: string;
  /** Default `service`. */
  project?: string;
  /** The supported role versions. Default 1.20.11-pmk.2038 and 1.21.3-pmk.72. */
  versions?: string[];
  /** How they are listed; which one is right is not public. Default `roles`. */
  versionsShape?: 'roles' | 'strings';
  /** How many calls a token is good for. Default: any number. */
  callsPerToken?: number;
  /** How many GETs of a cluster show each step of its task. Default 1. */
  looksPerStep?: number;
  /**
   * Fields that an upgrade gives to clusters. That an upgrade makes a cluster join the local registry is documented,
   * but not how the fields get there. Default: none, the fields stay as the cluster was created.
   */
  assumeUpgradeTakesOver?: Partial<Record<RegistryField, string>>;
}

export interface QbertCall {
  method: string;
  /** With its query. */
  path: string;
  body: unknown;
}

interface CallFailure {
  path: string;
  /** Default 1. */
  times?: number;
  /** Default 503. */
  status?: number;
  /** Default: a proxy's words. */
  body?: string;
  /** Whether what was asked for is done all the same, as when only the answer is lost. Default false. */
  withEffect?: boolean;
}

export interface Qbert extends TestServer {
  user: string;
  password: string;
  project: string;
  /** In the paths of qbert. */
  projectId: string;
  /** All requests, logins included, in the order of their arrival. */
  calls: QbertCall[];
  /** How many tokens were given out. */
  logins(): number;
  /** No token that was given out is good any more. */
  expireTokens(): void;
  /** The next step of a task is its last one: it ends in `error` with this text, the nodes at work `failed`. */
  failTask(taskError: string): void;
  /** The next calls whose path contains the text are answered with a failure. */
  failCalls(path: string, failure?: Omit<CallFailure, 'path'>): void;
  /**
   * Calls whose path contains the text have their effect, and their answers are held back until the function returned
   * is called.
   */
  hold(path: string): () => void;
}

const registryFields = [
  'dockerPrivateRegistry',
  'quayPrivateRegistry',
  'gcrPrivateRegistry',
  'k8sPrivateRegistry',
] as const;
type RegistryField = (typeof registryFields)[number];

interface Node {
  uuid: string;
  name: string;
  primaryIp: string;
  clusterUuid: string | null;
  clusterName: string | null;
  isMaster: 0 | 1;
  status: 'ok' | 'converging' | 'failed';
  actualKubeRoleVersion: string;
}

interface Cluster {
  row: z.infer<typeof createSchema> & {
    uuid: string;
    taskStatus: string;
    taskError: string;
    status: string;
    upgradingTo: string;
  };
  /** What is left of its task; a cluster that was created waits for nodes. */
  steps: (() => void)[];
  /** What the end of its task brings. */
  finish: () => void;
  /** GETs since the last step. */
  looks: number;
}

const flag = z.literal([0, 1], 'must be 0 or 1');
// A path breaks a `sed` on the nodes.
const registry = z.string().regex(/^[^\s/]*$/, 'must be host:port without scheme and path');
const cidr = z.cidrv4();
const createSchema = z.strictObject({
  name: z.string().min(1),
  kubeRoleVersion: z.string(),
  nodePoolUuid: z.string(),
  containersCidr: cidr,
  servicesCidr: cidr,
  networkPlugin: z.enum(['calico', 'flannel', 'weave', 'noop']),
  // The API document has a string, its examples a number.
  mtuSize: z.union([z.int(), z.string().regex(/^\d+$/)]).optional(),
  containerRuntime: z.enum(['docker', 'containerd']).optional(),
  allowWorkloadsOnMaster: flag.optional(),
  privileged: flag.optional(),
  masterVipIpv4: z.ipv4().optional(),
  masterVipIface: z.string().optional(),
  dockerPrivateRegistry: registry.optional(),
  quayPrivateRegistry: registry.optional(),
  gcrPrivateRegistry: registry.optional(),
  k8sPrivateRegistry: registry.optional(),
  dockerCentosPackageRepoUrl: z.string().optional(),
  dockerUbuntuPackageRepoUrl: z.string().optional(),
  tags: z.record(z.string(), z.string()).optional(),
});
const attachSchema = z.array(z.strictObject({ uuid: z.string(), isMaster: z.boolean() })).min(1);
const upgradeSchema = z.strictObject({
  batchUpgradePercent: z.number().min(1).max(100).optional(),
  batchUpgradeNodes: z.array(z.string()).optional(),
  containerRuntime: z.enum(['docker', 'containerd']).optional(),
});
const named = (name: string) => z.object({ name: z.literal(name), domain: z.object({ id: z.literal('default') }) });

/** Ends a call with an answer that is no success. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

interface Reply {
  status: number;
  body: unknown;
  headers?: Record<string, string>;
}
const ok = (body: unknown): Reply => ({ status: 200, body });

/** What qbert knows and does, without HTTP. */
class ControlPlane {
  readonly poolUuid = randomUUID();
  readonly clusters = new Map<string, Cluster>();
  readonly nodes: Map<string, Node>;
  nextTaskError: string | undefined;

  constructor(
    readonly versions: readonly string[],
    private readonly options: QbertOptions,
  ) {
    this.nodes = new Map(options.nodes.map((node) => [node.uuid, { ...node, ...unattached }]));
  }

  create(body: unknown): Reply {
    const row = check(createSchema, body);
    if (!this.versions.includes(row.kubeRoleVersion))
      throw new Refusal(400, `kubeRoleVersion ${row.kubeRoleVersion} is not supported`);
    if (row.nodePoolUuid !== this.poolUuid) throw new Refusal(400, `no node pool ${row.nodePoolUuid}`);
    if (Boolean(row.masterVipIpv4) !== Boolean(row.masterVipIface))
      throw new Refusal(400, 'masterVipIpv4 and masterVipIface belong together');
    const uuid = randomUUID();
    // Whether qbert refuses a second cluster of the same name is not public: its public clients look themselves.
    const state = { uuid, taskStatus: 'creating', taskError: '', status: '', upgradingTo: '' };
    this.clusters.set(uuid, { row: { ...row, ...state }, steps: [], finish: () => undefined, looks: 0 });
    return ok({ uuid });
  }

  attach(cluster: Cluster, body: unknown): Reply {
    const wanted = check(attachSchema, body).map(({ uuid, isMaster }) => ({
      node: this.nodes.get(uuid),
      uuid,
      isMaster,
    }));
    for (const { node, uuid } of wanted) {
      if (!node) throw new Refusal(400, `no node ${uuid}`);
      if (node.clusterUuid) throw new Refusal(400, `node ${uuid} is attached to cluster ${node.clusterUuid}`);
    }
    const { uuid: clusterUuid, name: clusterName, kubeRoleVersion, taskStatus } = cluster.row;
    if (!['creating', 'converging', 'success'].includes(taskStatus))
      throw new Refusal(400, `the cluster is ${taskStatus}`);
    for (const { node, isMaster } of wanted)
      Object.assign(node ?? {}, { clusterUuid, clusterName, isMaster: isMaster ? 1 : 0, status: 'converging' });
    const converge =
      taskStatus === 'creating' ? [() => void Object.assign(cluster.row, { taskStatus: 'converging' })] : [];
    const joining = this.nodesOf(cluster).filter(({ status }) => status === 'converging');
    const joins = joining.map(
      (node) => () => void Object.assign(node, { status: 'ok', actualKubeRoleVersion: kubeRoleVersion }),
    );
    begin(cluster, taskStatus === 'creating' ? 'creating' : 'converging', [...converge, ...joins], () =>
      succeed(cluster),
    );
    return ok('OK');
  }

  upgrade(cluster: Cluster, type: string | null, body: unknown): Reply {
    const { batchUpgradePercent, batchUpgradeNodes = [], containerRuntime } = check(upgradeSchema, body ?? {});
    if (type !== 'minor' && type !== 'patch') throw new Refusal(400, 'type must be minor or patch');
    const target = this.offers(cluster)[type];
    if (!target || !isIdle(cluster))
      throw new Refusal(400, `the cluster cannot be upgraded (${type}), it is ${cluster.row.taskStatus}`);
    const own = this.nodesOf(cluster);
    const workers = own.filter(({ isMaster }) => !isMaster);
    const stranger = batchUpgradeNodes.find((uuid) => !workers.some((node) => node.uuid === uuid));
    if (stranger) throw new Refusal(400, `${stranger} is no worker of the cluster`);
    const masters = own.filter(({ isMaster }) => isMaster).map((node) => [node]);
    // What becomes of workers that are not among batchUpgradeNodes is not public; here they follow.
    const batch = workers.filter(({ uuid }) => batchUpgradeNodes.includes(uuid));
    const rest = workers.filter((node) => !batch.includes(node));
    const size =
      batchUpgradePercent === undefined ? 1 : Math.max(1, Math.floor((workers.length * batchUpgradePercent) / 100));
    const steps = [...masters, ...chunks(batch, batch.length), ...chunks(rest, size)].flatMap((together) => [
      () => together.forEach((node) => Object.assign(node, { status: 'converging' })),
      () => together.forEach((node) => Object.assign(node, { status: 'ok', actualKubeRoleVersion: target })),
    ]);
    cluster.row.upgradingTo = target;
    begin(cluster, 'upgrading', steps, () => {
      const runtime = containerRuntime ? { containerRuntime } : {};
      Object.assign(cluster.row, {
        kubeRoleVersion: target,
        upgradingTo: '',
        ...runtime,
        ...this.options.assumeUpgradeTakesOver,
      });
      succeed(cluster);
    });
    return ok('OK');
  }

  remove(cluster: Cluster): Reply {
    const free = () => {
      for (const node of this.nodesOf(cluster)) Object.assign(node, unattached);
      this.clusters.delete(cluster.row.uuid);
    };
    begin(cluster, 'deleting', [free], () => undefined);
    return ok('OK');
  }

  /** The cluster as it is; its task goes on afterwards. */
  look(cluster: Cluster): Reply {
    const answer = ok(this.render(cluster));
    if (cluster.steps.length === 0 || ++cluster.looks < (this.options.looksPerStep ?? 1)) return answer;
    cluster.looks = 0;
    if (this.nextTaskError === undefined) {
      cluster.steps.shift()?.();
      if (cluster.steps.length === 0) cluster.finish();
      return answer;
    }
    Object.assign(cluster.row, { taskStatus: 'error', taskError: this.nextTaskError });
    for (const node of this.nodesOf(cluster)) if (node.status === 'converging') node.status = 'failed';
    cluster.steps = [];
    this.nextTaskError = undefined;
    return answer;
  }

  render(cluster: Cluster) {
    const { minor, patch } = this.offers(cluster);
    const canUpgrade = isIdle(cluster) && (minor !== '' || patch !== '');
    const own = this.nodesOf(cluster);
    const numMasters = own.filter(({ isMaster }) => isMaster).length;
    const fields = Object.fromEntries(registryFields.map((field) => [field, cluster.row[field] ?? '']));
    const upgrades = { canUpgrade, minorUpgradeRoleVersion: minor, patchUpgradeRoleVersion: patch };
    return { ...cluster.row, ...fields, ...upgrades, numMasters, numWorkers: own.length - numMasters };
  }

  private offers({ row }: Cluster) {
    return {
      minor: latest(this.versions, row.kubeRoleVersion, 1),
      patch: latest(this.versions, row.kubeRoleVersion, 0),
    };
  }

  private nodesOf({ row }: Cluster): Node[] {
    return [...this.nodes.values()].filter(({ clusterUuid }) => clusterUuid === row.uuid);
  }
}

const isIdle = ({ row }: Cluster): boolean => row.taskStatus === 'success' || row.taskStatus === 'error';
const succeed = ({ row }: Cluster): void => void Object.assign(row, { taskStatus: 'success', status: 'ok' });

function begin(cluster: Cluster, taskStatus: string, steps: Cluster['steps'], finish: Cluster['finish']): void {
  Object.assign(cluster, { steps, finish, looks: 0 });
  Object.assign(cluster.row, { taskStatus, taskError: '' });
}

/** Starts it on loopback. */
export async function startQbert(options: QbertOptions): Promise<Qbert> {
  const {
    user = 'admin@site.example',
    password = randomBytes(12).toString('base64'),
    project = 'service',
    versionsShape = 'roles',
  } = options;
  const { versions = ['1.20.11-pmk.2038', '1.21.3-pmk.72'], callsPerToken = Number.POSITIVE_INFINITY } = options;
  const projectId = randomUUID().replaceAll('-', '');
  const plane = new ControlPlane(versions, options);
  /** How often each token may still be used. */
  const tokens = new Map<string, number>();
  const calls: QbertCall[] = [];
  const failures: Required<CallFailure>[] = [];
  const held = new Set<{ path: string; released: Promise<void>; release: () => void }>();
  let logins = 0;

  const logIn = (body: unknown): Reply => {
    const credentials = z.object({ user: named(user).extend({ password: z.literal(password) }) });
    const identity = z.object({ methods: z.tuple([z.literal('password')]), password: credentials });
    if (
      !z.object({ auth: z.object({ identity, scope: z.object({ project: named(project) }) }) }).safeParse(body).success
    )
      throw new Refusal(401, 'The request you have made requires authentication.');
    const token = randomBytes(16).toString('hex');
    tokens.set(token, callsPerToken);
    logins++;
    return {
      status: 201,
      headers: { 'x-subject-token': token },
      body: { token: { methods: ['password'], project: { id: projectId, name: project } } },
    };
  };
  const authorize = (token: unknown, pathProject: string | undefined) => {
    const left = tokens.get(String(token)) ?? 0;
    if (left < 1) throw new Refusal(401, 'Authentication required');
    tokens.set(String(token), left - 1);
    if (pathProject !== projectId) throw new Refusal(403, 'Unauthorized to perform this operation');
  };
  const route = (
    method: string | undefined,
    version: string,
    path: string,
    query: URLSearchParams,
    body: unknown,
  ): Reply => {
    if (path === '/clusters/supportedRoleVersions' && method === 'GET')
      return ok(versionsShape === 'roles' ? { roles: versions.map((roleVersion) => ({ roleVersion })) } : versions);
    if (path === '/clusters' && method === 'GET')
      return ok([...plane.clusters.values()].map((cluster) => plane.render(cluster)));
    if (path === '/clusters' && method === 'POST') return plane.create(body);
    if (path === '/nodes' && method === 'GET') return ok([...plane.nodes.values()]);
    if (path === '/nodePools' && method === 'GET')
      return ok([{ name: 'defaultPool', uuid: plane.poolUuid, cloudProviderName: 'local' }]);
    const [, uuid, action = ''] = /^\/clusters\/([^/]+)(\/[^/]+)?$/.exec(path) ?? [];
    if (!uuid) throw new Refusal(404, 'no such route');
    const cluster = plane.clusters.get(uuid);
    if (!cluster) throw new Refusal(version === 'v3' ? 400 : 404, `no cluster ${uuid}`);
    if (method === 'POST' && action === '/attach') return plane.attach(cluster, body);
    if (method === 'POST' && action === '/upgrade') return plane.upgrade(cluster, query.get('type'), body);
    if (method === 'DELETE' && action === '') return plane.remove(cluster);
    if (method === 'GET' && action === '') return plane.look(cluster);
    throw new Refusal(404, 'no such route');
  };
  const serve = (request: IncomingMessage, url: URL, body: unknown): Reply => {
    if (url.pathname === '/keystone/v3/auth/tokens' && request.method === 'POST') return logIn(body);
    const [, version, pathProject, path = ''] = /^\/qbert\/(v[34])\/([^/]+)(\/.*)$/.exec(url.pathname) ?? [];
    if (!version) throw new Refusal(404, 'no such route');
    authorize(request.headers['x-auth-token'], pathProject);
    if (body !== undefined && request.headers['content-type'] !== 'application/json')
      throw new Refusal(400, 'the body must be application/json');
    return route(request.method, version, path, url.searchParams, body);
  };
  const answer = (request: IncomingMessage, url: URL, body: unknown): Reply => {
    try {
      return serve(request, url, body);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const { status: code, message } = error;
      // qbert's own form of errors is not public.
      return {
        status: code,
        body: url.pathname.startsWith('/keystone') ? { error: { code, message } } : { code, message },
      };
    }
  };
  const answerOrFail = (request: IncomingMessage, url: URL, body: unknown): Reply => {
    const failure = failures.find(({ path, times }) => times > 0 && url.pathname.includes(path));
    if (!failure) return answer(request, url, body);
    failure.times--;
    if (failure.withEffect) answer(request, url, body);
    return { status: failure.status, body: failure.body };
  };
  const handle = async (request: IncomingMessage, response: ServerResponse) => {
    const url = new URL(request.url ?? '', 'http://qbert');
    const sent = await text(request);
    const body: unknown = sent === '' ? undefined : JSON.parse(sent);
    calls.push({ method: request.method ?? '', path: request.url ?? '', body });
    const reply = answerOrFail(request, url, body);
    await Promise.all([...held].filter(({ path }) => url.pathname.includes(path)).map(({ released }) => released));
    const isText = typeof reply.body === 'string';
    response.writeHead(reply.status, { 'content-type': isText ? 'text/plain' : 'application/json', ...reply.headers });
    response.end(isText ? reply.body : JSON.stringify(reply.body));
  };
  const server = createServer((request, response) => {
    // What the fake itself does not understand.
    handle(request, response).catch((error: unknown) => response.writeHead(500).end(String(error)));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const hold = (path: string) => {
    let release: () => void = () => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    const one = { path, released, release };
    held.add(one);
    return () => {
      held.delete(one);
      release();
    };
  };
  const stop = async () => {
    for (const { release } of held) release();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    user,
    password,
    project,
    projectId,
    calls,
    logins: () => logins,
    expireTokens: () => tokens.clear(),
    failTask: (taskError) => {
      plane.nextTaskError = taskError;
    },
    failCalls: (path, { times = 1, status = 503, body = 'no healthy upstream', withEffect = false } = {}) => {
      failures.push({ path, times, status, body, withEffect });
    },
    hold,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

/** A node that is known and in no cluster. */
const unattached = {
  clusterUuid: null,
  clusterName: null,
  isMaster: 0,
  status: 'ok',
  actualKubeRoleVersion: '',
} as const;

function check<T>(schema: z.ZodType<T>, body: unknown): T {
  const parsed = schema.safeParse(body);
  if (!parsed.success) throw new Refusal(400, z.prettifyError(parsed.error));
  return parsed.data;
}

/**
 * The latest version of the same minor, or of the one after it, that is above the version; empty when there is none.
 */
function latest(versions: readonly string[], from: string, minorsUp: 0 | 1): string {
  const number = (text: string) => {
    const { patch, build = 0 } = parseKubernetesVersion(text);
    return patch * 1e6 + build;
  };
  const { major, minor } = parseKubernetesVersion(from);
  const candidates = versions.filter((text) => {
    const version = parseKubernetesVersion(text);
    return (
      version.major === major && version.minor === minor + minorsUp && (minorsUp > 0 || number(text) > number(from))
    );
  });
  return candidates.sort((a, b) => number(b) - number(a))[0] ?? '';
}

const chunks = <T>(items: readonly T[], size: number): T[][] =>
  Array.from({ length: Math.ceil(items.length / size) }, (_, index) => items.slice(index * size, (index + 1) * size));
