import { existsSync, readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { nameKinds } from '@airdock/core/oci/reference';
import { type RegistryMode, readRegistryMode } from '@airdock/core/registry-mode';
import { type Document, LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';

/** The services of Airdock. */
export const serviceNames = ['registry', 'image', 'host', 'cluster', 'backup'] as const;
/** One of the services. */
export type ServiceName = (typeof serviceNames)[number];

const port = z.coerce.number().int().min(1).max(65535);

const names = z
  .array(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9+._-]*$/, 'must be the name of a package'))
  .max(100)
  .default([]);
/** Those that make a node, as Kubernetes calls them. */
const nodePackages = names.default(['kubeadm', 'kubelet', 'kubectl']);
const algorithmNames = z
  .array(z.string().regex(/^[a-z0-9][a-z0-9@.-]{1,63}$/, 'must be the name of an SSH algorithm'))
  .min(1)
  .max(30)
  .optional();
const packagesByFamily = z.strictObject({ debian: names, redhat: names }).prefault({});
const word = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;
/** What cannot leave a line of a package list, nor lead out of the folder. */
const pathInFolder = /^(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._/+-]*$/;

const packageRepository = z.strictObject({
  name: z.string().regex(/^[a-z0-9][a-z0-9-]{0,40}$/, 'must be lower-case letters, digits and -'),
  format: z.enum(['apt', 'yum']),
  folder: z.string().min(1).describe('Folder of the release with packages and their metadata'),
  distributions: z
    .array(z.string().regex(word))
    .max(50)
    .default([])
    .describe(
      'apt: suites below dists/ in the folder, by codename of the hosts; yum: subfolders, by major release of the hosts. Without any: one flat folder for all',
    ),
  components: z.array(z.string().regex(word)).min(1).max(20).default(['main']).describe('apt with distributions'),
  gpgKey: z
    .string()
    .regex(pathInFolder)
    .optional()
    .describe('yum: path of the public key in the folder, which then must have signed the packages'),
});
/** A folder of packages that the DU serves to its hosts. */
export type PackageRepositoryConfig = z.output<typeof packageRepository>;

/** Bits of an address, by its version. */
const addressBits: Record<number, number> = { 4: 32, 6: 128 };

/** A name, its subdomains as `*.name`, an address, or a network. */
function isHostPattern(text: string): boolean {
  const [address = '', prefix, ...rest] = text.split('/');
  const bits = addressBits[isIP(address)];
  if (bits === undefined) return /^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$/.test(text) && !/^[\d.]+$/.test(text);
  return rest.length === 0 && (prefix === undefined || (/^\d{1,3}$/.test(prefix) && Number(prefix) <= bits));
}

const hostPatterns = z
  .array(z.string().refine(isHostPattern, 'must be a name, *.name, an address or a network like 10.0.0.0/8'))
  .max(100)
  .default([]);

const backupTarget = z.union([
  z.strictObject({ folder: z.string().min(1).describe('A folder, also on NFS') }),
  z.strictObject({
    s3: z.strictObject({
      endpoint: z.url({ protocol: /^https?$/ }),
      region: z.string().min(1).default('us-east-1'),
      bucket: z.string().min(3),
      prefix: z
        .string()
        .regex(/^(?:[A-Za-z0-9._-]+\/)*$/, 'must end with /')
        .default(''),
      accessKeyId: z.string().min(1),
      secretKeyFile: z.string().min(1).describe('File with the secret access key'),
      pathStyle: z
        .boolean()
        .default(true)
        .describe('Whether the bucket is in the path, as most S3 servers on site want it, or in the host name'),
    }),
  }),
]);
/** One place for backups. */
export type BackupTargetConfig = z.output<typeof backupTarget>;

const airdockSchema = z.strictObject({
  dataDir: z.string().default('/var/lib/airdock').describe('Folder of everything that Airdock keeps'),
  http: z
    .strictObject({
      host: z.string().default('127.0.0.1'),
      port: port.default(5180),
      socket: z
        .string()
        .min(1)
        .optional()
        .describe(
          'Path of the Unix socket of the API; default: api.sock in dataDir, where all services are in one process',
        ),
      socketGroup: z
        .string()
        .min(1)
        .optional()
        .describe('Name or id of the group that may open the socket; default: the group of the process'),
      allowPlainHttp: z
        .boolean()
        .default(false)
        .describe('Whether the API may listen beyond loopback, where everybody on the way reads the token'),
      maxConnections: z.coerce
        .number()
        .int()
        .min(8)
        .max(100_000)
        .default(1024)
        .describe('Connections at once, on TCP and on the socket each'),
      maxConnectionsPerAddress: z.coerce
        .number()
        .int()
        .min(4)
        .max(100_000)
        .default(256)
        .describe('Connections at once of one address'),
      headerTimeoutSeconds: z.coerce.number().min(1).max(600).default(20).describe('For the headers of a request'),
      bodyTimeoutSeconds: z.coerce
        .number()
        .min(1)
        .max(600)
        .default(30)
        .describe('For the body of a request; for an upload, how long it may stand still'),
    })
    .prefault({})
    .describe('Where the API listens'),
  logLevel: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'silent']).default('info'),
  tokenFile: z
    .string()
    .optional()
    .describe('File with the API token; default: admin.token in dataDir, made on the first start'),
  internalTokenFile: z
    .string()
    .optional()
    .describe(
      'File with the token of services among themselves; default: internal.token in dataDir, made on the first start',
    ),
  secretsKeyFile: z
    .string()
    .optional()
    .describe('File with the key of stored secrets; default: secrets.key in dataDir, made on the first start'),
  signingKeyFile: z
    .string()
    .optional()
    .describe(
      'File with the key that backups are signed with; default: signing.key in dataDir, made on the first start',
    ),
  databaseUrl: z.string().optional().describe('postgres://…, a schema per service; default: SQLite files in dataDir'),
  redisUrl: z.string().optional().describe('redis://… or a socket path; default: a redis-server of our own'),
  registry: z
    .strictObject({
      port: port.default(5100).describe('To pull from: on localhost of the DU, and on every host'),
      localPush: z
        .boolean()
        .default(false)
        .describe(
          'Whether docker push to localhost works, with the password in registry/local-push.password of dataDir',
        ),
      readOnlyPort: port.optional().describe('Has no meaning any more: tunnels lead to a Unix socket'),
      storageDir: z.string().optional().describe('default: registry/storage in dataDir'),
      socketDir: z
        .string()
        .optional()
        .describe("Folder for the registry's Unix sockets, closed to others; default: run/registry in dataDir"),
      binary: z.string().default('docker-registry').describe('The distribution program'),
      directPlacement: z
        .boolean()
        .default(true)
        .describe('Whether blobs may be placed in the storage folder past the registry'),
      minFreeBytes: z.coerce
        .number()
        .int()
        .nonnegative()
        .default(1024 ** 3)
        .describe("What pushes leave free on the disk of the registry's storage"),
      garbageCollection: z
        .strictObject({
          protectHours: z.coerce
            .number()
            .min(0)
            .max(8760)
            .default(2)
            .describe('What was pushed in this time is never collected'),
          uploadHours: z.coerce
            .number()
            .min(1)
            .max(8760)
            .default(168)
            .describe('After this time without a byte an unfinished upload is abandoned'),
        })
        .prefault({}),
      allowedHosts: hostPatterns.describe(
        'Where registries of others may be, for mode external by API and restores: names, *.name, addresses, networks; without any: anywhere but on this machine and link-local',
      ),
      externalUrl: z
        .url()
        .optional()
        .describe('The registry that someone else runs, for privateRegistryType: external'),
    })
    .prefault({}),
  packages: z
    .strictObject({
      port: port.default(5102).describe('On loopback of every host'),
      repositories: z
        .array(packageRepository)
        .max(100)
        .refine((all) => new Set(all.map(({ name }) => name)).size === all.length, 'names must differ')
        .default([]),
      install: packagesByFamily.describe('Packages that every host gets from the repositories, e.g. pf9-hostagent'),
      docker: packagesByFamily.describe('Packages that make Docker on a host without it'),
      kubernetes: z
        .strictObject({ debian: nodePackages, redhat: nodePackages })
        .prefault({})
        .describe('Packages that make a node of a host'),
    })
    .prefault({})
    .describe('Package repositories for hosts'),
  hosts: z
    .strictObject({
      workerMemoryMiB: z.coerce
        .number()
        .int()
        .min(256)
        .max(65_536)
        .default(768)
        .describe('Of the process that serves hosts; at more it is started anew'),
      drift: z
        .strictObject({
          everyMinutes: z.coerce
            .number()
            .min(0)
            .max(43_200)
            .default(60)
            .describe('Between two looks at all configured hosts; 0: never'),
          repair: z.boolean().default(false).describe('Whether what has drifted is put right at once'),
        })
        .prefault({}),
      ssh: z
        .strictObject({
          algorithms: z
            .strictObject({ kex: algorithmNames, cipher: algorithmNames, mac: algorithmNames })
            .prefault({})
            .describe('What is offered to hosts, first what is preferred; a list that is left out is the default one'),
        })
        .prefault({})
        .describe('How hosts are logged in to'),
    })
    .prefault({})
    .describe('Hosts, and how they are reached'),
  mirroredUpstreams: z
    .array(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?$/))
    .max(100)
    .default(['docker.io', 'quay.io', 'gcr.io', 'k8s.gcr.io', 'registry.k8s.io'])
    .describe('Registries that containerd hosts find in the local one'),
  bundleDirs: z.array(z.string()).default([]).describe('Folders that bundles may be registered from'),
  naming: z
    .array(z.enum(nameKinds))
    .min(1)
    .default([...nameKinds])
    .describe('Which names images get in the local registry: flat as PMK rewrites them, and below their upstream'),
  duVersion: z
    .string()
    .regex(/^(?:v-?)?\d+\.\d+\.\d+(?:-\d+)?$/, 'must be a version like v-5.3.0-1558488')
    .default('v-5.3.0')
    .describe('Of the DU that Airdock runs in'),
  pmk: z
    .strictObject({
      url: z
        .url({ protocol: /^https?$/ })
        .refine(
          (url) => /^https:|^http:\/\/(localhost|127\.\d+\.\d+\.\d+|\[::1\])([:/]|$)/.test(url),
          'must be https, since the password goes there',
        )
        .describe('Of the DU of PMK'),
      project: z.string().min(1).describe('Name of the project (tenant) that clusters are created in'),
      user: z.string().min(1),
      domain: z.string().min(1).default('default'),
      passwordFile: z.string().min(1).describe('File with the password of the user'),
    })
    .optional()
    .describe('The PMK control plane, for clusters with the provisioner pmk'),
  jobs: z
    .strictObject({
      keepDays: z.coerce
        .number()
        .min(1)
        .max(3650)
        .default(90)
        .describe('How long jobs that have ended can be looked up, with their requests'),
      idempotencyKeepDays: z.coerce
        .number()
        .min(1)
        .max(3650)
        .default(30)
        .describe('How long a repeated Idempotency-Key gets the first answer again'),
    })
    .prefault({})
    .describe('Jobs that have ended'),
  webhooks: z
    .strictObject({
      allowedHosts: hostPatterns.describe(
        'Where webhooks may go; without any: anywhere but to this machine and link-local addresses',
      ),
      timeoutSeconds: z.coerce.number().min(0.1).max(60).default(15).describe('For one delivery'),
      giveUpAfterHours: z.coerce
        .number()
        .min(0)
        .max(720)
        .default(24)
        .describe('How long a delivery is tried again before its endpoint is disabled'),
      keepDays: z.coerce
        .number()
        .min(0.01)
        .max(3650)
        .default(30)
        .describe('How long events and deliveries can be looked up'),
    })
    .prefault({}),
  backupDir: z.string().optional().describe('Folder of the backup target `default`; default: backups in dataDir'),
  backup: z
    .strictObject({
      targets: z
        .record(z.string().regex(/^[a-z0-9][a-z0-9-]{0,40}$/, 'must be lower-case letters, digits and -'), backupTarget)
        .default({})
        .describe('Where backups are kept beside backupDir, by name'),
      encryption: z
        .strictObject({
          recipients: z
            .array(z.string().regex(/^age1[a-z0-9]+$/, 'must be an age recipient: age1…'))
            .max(20)
            .default([])
            .describe('age recipients: with any of them new blobs are encrypted'),
          identityFile: z
            .string()
            .optional()
            .describe('File with the age key that opens encrypted backups: for restores, drills and verifications'),
        })
        .prefault({}),
      signingKeyFile: z
        .string()
        .optional()
        .describe(
          'File with 64 hex digits that records were signed with before airdock.signingKeyFile: those are read with it still',
        ),
      compress: z.boolean().default(true).describe('Whether blobs that get smaller by it are compressed'),
      exchangeDir: z.string().optional().describe('Folder that backups are exported to, and imported from'),
    })
    .prefault({})
    .describe('Backups'),
  services: z
    .partialRecord(z.enum(serviceNames), z.url())
    .default({})
    .describe('URLs of services that run in processes of their own'),
});

/** The configuration, checked and complete. */
export interface Config extends z.output<typeof airdockSchema> {
  privateRegistryType: RegistryMode;
  /** What is accepted, and may have been meant otherwise. */
  warnings: string[];
  tokenFile: string;
  internalTokenFile: string;
  secretsKeyFile: string;
  signingKeyFile: string;
  backupDir: string;
  registry: z.output<typeof airdockSchema>['registry'] & { storageDir: string; socketDir: string };
  /** The file that was read, if there was one. */
  file?: string | undefined;
}

/** Environment variables that override the file, with the key each stands for. */
const environmentKeys: Record<string, string> = {
  AIRDOCK_DATA_DIR: 'dataDir',
  AIRDOCK_HTTP_HOST: 'http.host',
  AIRDOCK_HTTP_PORT: 'http.port',
  AIRDOCK_HTTP_SOCKET: 'http.socket',
  AIRDOCK_LOG_LEVEL: 'logLevel',
  AIRDOCK_TOKEN_FILE: 'tokenFile',
  AIRDOCK_INTERNAL_TOKEN_FILE: 'internalTokenFile',
  AIRDOCK_SECRETS_KEY_FILE: 'secretsKeyFile',
  AIRDOCK_SIGNING_KEY_FILE: 'signingKeyFile',
  AIRDOCK_REGISTRY_PORT: 'registry.port',
  AIRDOCK_PACKAGES_PORT: 'packages.port',
  AIRDOCK_BACKUP_DIR: 'backupDir',
  DATABASE_URL: 'databaseUrl',
  REDIS_URL: 'redisUrl',
  ...Object.fromEntries(serviceNames.map((name) => [`AIRDOCK_${name.toUpperCase()}_URL`, `services.${name}`])),
};

const defaultFiles = ['/opt/pf9/airctl/conf/airctl-config.yaml', join(homedir(), 'airctl-config.yaml')];

/** Where configuration comes from; later sources win. */
export interface ConfigSources {
  /** A file that must exist; without it the first of airctl's own places that exists, or none. */
  file?: string | undefined;
  environment?: NodeJS.ProcessEnv;
  /** Command-line options, by dotted key; they win over everything. */
  overrides?: Record<string, unknown>;
}

function setKey(target: Record<string, unknown>, key: string, value: unknown): void {
  const parts = key.split('.');
  const last = parts.pop() as string;
  let at = target;
  for (const part of parts) {
    // A value where keys should be is reported by the schema.
    if (typeof at[part] !== 'object' || at[part] === null) at[part] = at[part] === undefined ? {} : at[part];
    if (typeof at[part] !== 'object') return;
    at = at[part] as Record<string, unknown>;
  }
  at[last] = value;
}

/**
 * Reads airctl's configuration file. `privateRegistryType` is honoured as `readRegistryMode` has it (`external` needs
 * `airdock.registry.externalUrl`), other keys of airctl are left alone, and everything under `airdock:` is checked.
 * Throws `configuration_invalid` with every mistake at once, each by key and line.
 */
export function loadConfig({ file, environment = process.env, overrides = {} }: ConfigSources = {}): Config {
  const path = file ?? environment.AIRDOCK_CONFIG ?? defaultFiles.find((candidate) => existsSync(candidate));
  const lines = new LineCounter();
  let text = '';
  try {
    if (path) text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new AppError('configuration_invalid', { detail: `${path} cannot be read` }, { cause });
  }
  const document = parseDocument(text, { lineCounter: lines });
  const issues: { key: string; line?: number | undefined; message: string }[] = document.errors.map((error) => ({
    key: '',
    line: error.linePos?.[0].line,
    message: error.message.split('\n')[0] ?? '',
  }));
  const content: unknown = issues.length === 0 ? document.toJS() : {};
  const root = content === null || content === undefined ? {} : content;
  const values: Record<string, unknown> =
    typeof root === 'object' && !Array.isArray(root) ? (root as Record<string, unknown>) : {};
  if (values !== root) issues.push({ key: '', line: 1, message: 'the file must hold keys and values' });

  const section: unknown = structuredClone(values.airdock ?? {});
  const airdock: Record<string, unknown> =
    typeof section === 'object' && section !== null && !Array.isArray(section)
      ? (section as Record<string, unknown>)
      : {};
  if (airdock !== section) issues.push({ key: 'airdock', message: 'must hold keys and values' });
  for (const [variable, key] of Object.entries(environmentKeys))
    if (environment[variable]) setKey(airdock, key, environment[variable]);
  for (const [key, value] of Object.entries(overrides)) if (value !== undefined) setKey(airdock, key, value);

  const parsed = airdockSchema.safeParse(airdock);
  for (const issue of parsed.error?.issues ?? []) {
    const keys = issue.code === 'unrecognized_keys' ? issue.keys.map((key) => [...issue.path, key]) : [issue.path];
    for (const key of keys) {
      const line = lineOf(document, lines, ['airdock', ...key.map(String)]);
      issues.push({
        key: ['airdock', ...key].join('.'),
        line,
        message: issue.code === 'unrecognized_keys' ? 'is no key of Airdock' : issue.message,
      });
    }
  }
  const type = readRegistryMode(environment.AIRDOCK_PRIVATE_REGISTRY_TYPE || values.privateRegistryType);
  if ('error' in type)
    issues.push({
      key: 'privateRegistryType',
      line: lineOf(document, lines, ['privateRegistryType']),
      message: type.error,
    });
  const privateRegistryType: RegistryMode = 'error' in type ? 'none' : type.mode;
  if (privateRegistryType === 'external' && parsed.success && !parsed.data.registry.externalUrl)
    issues.push({ key: 'airdock.registry.externalUrl', message: 'is needed with privateRegistryType: external' });
  if (parsed.success && !parsed.data.http.allowPlainHttp && !isLoopback(parsed.data.http.host))
    issues.push({
      key: 'airdock.http.host',
      line: lineOf(document, lines, ['airdock', 'http', 'host']),
      message:
        'is no loopback address, and the API speaks plain HTTP: put a TLS proxy before 127.0.0.1, or set airdock.http.allowPlainHttp',
    });
  if (issues.length > 0 || !parsed.success) {
    const detail = issues
      .map(({ key, line, message }) => `${path ?? 'environment'}${line ? `:${line}` : ''}: ${key} ${message}`.trim())
      .join('\n');
    throw new AppError('configuration_invalid', { detail, issues });
  }
  const data = parsed.data;
  const dataDir = resolve(data.dataDir);
  const backupDir = resolve(data.backupDir ?? join(dataDir, 'backups'));
  return {
    ...data,
    dataDir,
    privateRegistryType,
    warnings: 'warning' in type && type.warning !== undefined ? [type.warning] : [],
    tokenFile: data.tokenFile ?? join(dataDir, 'admin.token'),
    internalTokenFile: data.internalTokenFile ?? join(dataDir, 'internal.token'),
    secretsKeyFile: data.secretsKeyFile ?? join(dataDir, 'secrets.key'),
    signingKeyFile: data.signingKeyFile ?? join(dataDir, 'signing.key'),
    backupDir,
    backup: {
      ...data.backup,
      targets: { ...data.backup.targets, default: data.backup.targets.default ?? { folder: backupDir } },
    },
    bundleDirs: data.bundleDirs.map((folder) => resolve(folder)),
    packages: {
      ...data.packages,
      repositories: data.packages.repositories.map((one) => ({ ...one, folder: resolve(one.folder) })),
    },
    registry: {
      ...data.registry,
      storageDir: resolve(data.registry.storageDir ?? join(dataDir, 'registry', 'storage')),
      socketDir: resolve(data.registry.socketDir ?? join(dataDir, 'run/registry')),
    },
    file: path,
  };
}

function lineOf(document: Document, lines: LineCounter, key: string[]): number | undefined {
  const node = document.getIn(key, true) as { range?: [number, number, number] } | undefined;
  return node?.range ? lines.linePos(node.range[0]).line : undefined;
}

const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));

/** Where a service answers, and by which Unix socket, if by one. */
export interface ServiceEndpoint {
  url: string;
  socketPath?: string;
}

/**
 * Where a service answers: its own URL when it runs apart, else this process, by its socket where it has one: nobody
 * else can be behind that, or crowd it.
 */
export function serviceEndpoint({ services, http }: Config, name: ServiceName): ServiceEndpoint {
  const url = services[name];
  if (url !== undefined) return { url: url.replace(/\/$/, '') };
  return http.socket === undefined
    ? { url: `http://${reachableHost(http.host)}:${http.port}` }
    : { url: 'http://localhost', socketPath: http.socket };
}

/** How this process reaches an address that it listens on. */
function reachableHost(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1';
  if (host === '::') return '[::1]';
  return host.includes(':') ? `[${host}]` : host;
}

/** Injection token of `Config`. */
export const CONFIG = Symbol('CONFIG');
