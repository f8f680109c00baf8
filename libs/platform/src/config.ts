import { existsSync, readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { type RegistryMode, readRegistryMode } from '@airdock/core/registry-mode';
import { type Document, LineCounter, parseDocument } from 'yaml';
import { type AirdockSection, airdockSchema, type ServiceName, serviceNames } from './config.schema.js';

export {
  type BackupTargetConfig,
  type PackageRepositoryConfig,
  type ServiceName,
  serviceNames,
} from './config.schema.js';

/** The configuration, checked and complete. */
export interface Config extends AirdockSection {
  privateRegistryType: RegistryMode;
  /** What is accepted, and may have been meant otherwise. */
  warnings: string[];
  tokenFile: string;
  internalTokenFile: string;
  secretsKeyFile: string;
  signingKeyFile: string;
  backupDir: string;
  registry: AirdockSection['registry'] & { storageDir: string; socketDir: string };
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

interface Issue {
  key: string;
  line?: number | undefined;
  message: string;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** airctl's configuration file, or none: what it holds, where, and what is wrong with it. */
class ConfigFile {
  readonly values: Record<string, unknown>;
  readonly issues: Issue[];
  private readonly lines = new LineCounter();
  private readonly document: Document;

  constructor(readonly path: string | undefined) {
    this.document = parseDocument(path ? readText(path) : '', { lineCounter: this.lines });
    this.issues = this.document.errors.map((error) => ({
      key: '',
      line: error.linePos?.[0].line,
      message: error.message.split('\n')[0] ?? '',
    }));
    const content: unknown = (this.issues.length === 0 ? this.document.toJS() : undefined) ?? {};
    this.values = isObject(content) ? content : {};
    if (this.values !== content) this.issues.push({ key: '', line: 1, message: 'the file must hold keys and values' });
  }

  /** Notes what is wrong with the key that lies at `path`. */
  refuse(path: readonly PropertyKey[], message: string): void {
    const node = this.document.getIn(path.map(String), true) as { range?: [number, number, number] } | undefined;
    const line = node?.range ? this.lines.linePos(node.range[0]).line : undefined;
    this.issues.push({ key: path.join('.'), line, message });
  }

  /** The error with all that is wrong, each by key and line. */
  error(): AppError {
    const detail = this.issues
      .map(({ key, line, message }) =>
        `${this.path ?? 'environment'}${line ? `:${line}` : ''}: ${key} ${message}`.trim(),
      )
      .join('\n');
    return new AppError('configuration_invalid', { detail, issues: this.issues });
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    throw new AppError('configuration_invalid', { detail: `${path} cannot be read` }, { cause });
  }
}

/** What stands under `airdock:`, with what the environment and the command line put in its place. */
function airdockSection(
  file: ConfigFile,
  environment: NodeJS.ProcessEnv,
  overrides: Record<string, unknown>,
): Record<string, unknown> {
  const section: unknown = structuredClone(file.values.airdock ?? {});
  const airdock = isObject(section) ? section : {};
  if (airdock !== section) file.issues.push({ key: 'airdock', message: 'must hold keys and values' });
  for (const [variable, key] of Object.entries(environmentKeys))
    if (environment[variable]) setKey(airdock, key, environment[variable]);
  for (const [key, value] of Object.entries(overrides)) if (value !== undefined) setKey(airdock, key, value);
  return airdock;
}

function checkedSection(file: ConfigFile, airdock: Record<string, unknown>): AirdockSection | undefined {
  const parsed = airdockSchema.safeParse(airdock);
  for (const issue of parsed.error?.issues ?? []) {
    const isUnknown = issue.code === 'unrecognized_keys';
    const keys = isUnknown ? issue.keys.map((key) => [...issue.path, key]) : [issue.path];
    for (const key of keys) file.refuse(['airdock', ...key], isUnknown ? 'is no key of Airdock' : issue.message);
  }
  return parsed.data;
}

/**
 * Reads airctl's configuration file. `privateRegistryType` is honoured as `readRegistryMode` has it (`external` needs
 * `airdock.registry.externalUrl`), other keys of airctl are left alone, and everything under `airdock:` is checked.
 * Throws `configuration_invalid` with every mistake at once, each by key and line.
 */
export function loadConfig({ file: path, environment = process.env, overrides = {} }: ConfigSources = {}): Config {
  const file = new ConfigFile(
    path ?? environment.AIRDOCK_CONFIG ?? defaultFiles.find((candidate) => existsSync(candidate)),
  );
  const data = checkedSection(file, airdockSection(file, environment, overrides));
  const type = readRegistryMode(environment.AIRDOCK_PRIVATE_REGISTRY_TYPE || file.values.privateRegistryType);
  if ('error' in type) file.refuse(['privateRegistryType'], type.error);
  const mode: RegistryMode = 'error' in type ? 'none' : type.mode;
  if (mode === 'external' && data && !data.registry.externalUrl)
    file.issues.push({ key: 'airdock.registry.externalUrl', message: 'is needed with privateRegistryType: external' });
  if (data && !data.http.allowPlainHttp && !isLoopback(data.http.host))
    file.refuse(
      ['airdock', 'http', 'host'],
      'is no loopback address, and the API speaks plain HTTP: put a TLS proxy before 127.0.0.1, or set airdock.http.allowPlainHttp',
    );
  if (file.issues.length > 0 || !data) throw file.error();
  const warnings = 'warning' in type && type.warning !== undefined ? [type.warning] : [];
  return { ...completed(data), privateRegistryType: mode, warnings, file: file.path };
}

/** With every path absolute, and those that are not named in the data folder. */
function completed(data: AirdockSection): Omit<Config, 'privateRegistryType' | 'warnings'> {
  const dataDir = resolve(data.dataDir);
  const backupDir = resolve(data.backupDir ?? join(dataDir, 'backups'));
  return {
    ...data,
    dataDir,
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
  };
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
