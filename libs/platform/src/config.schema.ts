import { isIP } from 'node:net';
import { nameKinds } from '@airdock/core/oci/reference';
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

/** The keys under `airdock:`. */
export const airdockSchema = z.strictObject({
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
/** What stands under `airdock:`, checked. */
export type AirdockSection = z.output<typeof airdockSchema>;
