// The import rules of the house. libs/testing/src/import-rules.spec.ts proves that each of them fails when broken.

/** Each library, and the libraries that it may import. `testing` is for specs. */
export const libraries = {
  core: [],
  disk: ['core'],
  outbound: ['core'],
  clients: ['core', 'outbound'],
  oci: ['core', 'disk', 'outbound'],
  registry: ['core', 'disk', 'outbound', 'clients', 'oci'],
  'backup-store': ['core', 'disk', 'oci', 'registry'],
  ssh: ['core'],
  host: ['core', 'ssh'],
  inventory: ['core'],
  pmk: ['core', 'outbound'],
  platform: ['core', 'disk'],
  testing: ['core'],
};

/** The rooms of libraries that have several, and the rooms below that each may import. */
export const rooms = {
  disk: { files: [], programs: ['files'] },
  oci: {
    image: [],
    archive: [],
    'registry-client': ['image'],
    compression: ['image', 'archive'],
    bundle: ['image', 'archive', 'compression'],
  },
  registry: { folder: [], access: ['folder'], copy: ['folder'], engine: ['folder'] },
  ssh: { command: [], connection: ['command'], tunnel: ['connection', 'command'] },
  host: {
    system: [],
    runtime: ['system'],
    work: ['system'],
    inspection: ['system', 'runtime'],
    configuration: ['system', 'runtime', 'work'],
    kubeadm: ['system', 'runtime', 'work'],
  },
};

const lib = (name) => `^libs/${name}/`;
const room = (library, name) => `^libs/${library}/src/${name}/`;
const notSpec = '\\.spec\\.ts$';

const libraryRules = Object.entries(libraries).map(([name, allowed]) => ({
  name: `libs-${name}`,
  comment: `imports of the project's libraries: ${['itself', ...allowed].join(', ')}`,
  severity: 'error',
  from: { path: lib(name) },
  to: { path: '^(libs|apps|test)/', pathNot: [name, ...allowed, 'testing'].map(lib) },
}));

const roomRules = Object.entries(rooms).flatMap(([library, names]) =>
  Object.entries(names).map(([name, allowed]) => ({
    name: `room-${library}-${name}`,
    comment: `imports of rooms of ${library}: ${['itself', ...allowed].join(', ')}`,
    severity: 'error',
    from: { path: room(library, name), pathNot: notSpec },
    to: { path: lib(library), pathNot: [name, ...allowed].map((other) => room(library, other)) },
  })),
);

/** @type {import('dependency-cruiser').IConfiguration} */
export default {
  forbidden: [
    ...libraryRules,
    ...roomRules,
    { name: 'no-cycles', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'core-is-pure',
      comment: 'core knows no I/O and no framework: only itself, pure libraries and hashing',
      severity: 'error',
      from: { path: lib('core'), pathNot: notSpec },
      to: {
        pathNot: [
          lib('core'),
          'node_modules/(zod|semver|@types/semver|smol-toml|jsonc-parser|diff)/',
          '^(node:)?crypto$',
        ],
      },
    },
    {
      name: 'frameworks-stay-in-platform-and-apps',
      comment: 'the other libraries speak to the outside world without Nest, TypeORM and BullMQ',
      severity: 'error',
      from: { path: '^libs/', pathNot: [lib('platform'), lib('testing'), notSpec] },
      to: { path: '(^|node_modules/)(@nestjs|typeorm|bullmq)/' },
    },
    {
      name: 'only-du-imports-apps',
      severity: 'error',
      from: { path: '^apps/([^/]+)/', pathNot: '^apps/du/' },
      to: { path: '^apps/', pathNot: '^apps/$1/' },
    },
    {
      name: 'tests-use-the-front-door',
      comment: 'test/ speaks to services over HTTP',
      severity: 'error',
      from: { path: '^test/' },
      to: { path: '^apps/' },
    },
    {
      name: 'testing-is-for-specs',
      severity: 'error',
      from: { path: ['^apps/', '^libs/'], pathNot: [notSpec, lib('testing')] },
      to: { path: lib('testing') },
    },
    {
      name: 'platform-testing-is-for-specs',
      severity: 'error',
      from: { path: ['^apps/', '^libs/'], pathNot: [notSpec, '^libs/platform/src/(schema/)?testing/'] },
      to: { path: '^libs/platform/src/(schema/)?testing/' },
    },
    {
      name: 'slices-share-service-and-schema-only',
      comment: 'a spec may look at the tables of others',
      severity: 'error',
      from: { path: '^apps/[^/]+/src/([^/]+)/', pathNot: notSpec },
      to: { path: '^apps/[^/]+/src/([^/]+)/', pathNot: ['^apps/[^/]+/src/$1/', '\\.(service|schema)\\.ts$'] },
    },
    {
      name: 'no-circles-of-folders',
      comment:
        'two slices that need each other are one (rooms of libraries have a table); who is below says what it needs from above by an abstract class (apps/image-svc/src/image/image-users.service.ts)',
      severity: 'error',
      scope: 'folder',
      from: { path: '^(apps/[^/]+|libs/platform)/src/' },
      to: { circular: true },
    },
    {
      name: 'programs-are-started-in-one-place',
      comment: 'libs/disk/src/programs says what is waited for, bounded, and ended with its owner',
      severity: 'error',
      from: { path: ['^apps/', '^libs/'], pathNot: [notSpec, lib('testing'), room('disk', 'programs')] },
      to: { path: '^(node:)?child_process$', dependencyTypesNot: ['type-only'] },
    },
    { name: 'no-unresolved', severity: 'error', from: {}, to: { couldNotResolve: true } },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '(^|/)(dist|generated)/' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.base.json' },
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['airdock-source', 'import', 'node', 'default'],
      extensions: ['.ts', '.js'],
    },
  },
};
