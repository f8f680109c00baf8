// The import rules of the house. libs/testing/src/import-rules.spec.ts proves that each of them fails when broken.
const lib = (name) => `^libs/${name}/`;

/** @type {import('dependency-cruiser').IConfiguration} */
export default {
  forbidden: [
    { name: 'no-cycles', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'core-is-pure',
      comment: 'core knows no I/O and no framework: only itself, pure libraries and hashing',
      severity: 'error',
      from: { path: lib('core'), pathNot: '\\.spec\\.ts$' },
      to: { pathNot: [lib('core'), 'node_modules/(zod|semver|@types/semver|smol-toml|jsonc-parser|diff)/', '^(node:)?crypto$'] },
    },
    {
      name: 'adapters-know-core-only',
      comment: 'adapters speak to the outside world without Nest, TypeORM, BullMQ or the platform',
      severity: 'error',
      from: { path: lib('adapters'), pathNot: '\\.spec\\.ts$' },
      to: { path: [lib('platform'), lib('testing'), '^apps/', 'node_modules/(@nestjs|typeorm|bullmq)/'] },
    },
    {
      name: 'platform-knows-core-only',
      severity: 'error',
      from: { path: lib('platform'), pathNot: '\\.spec\\.ts$' },
      to: { path: [lib('adapters'), lib('testing'), '^apps/'] },
    },
    { name: 'no-app-in-libs', severity: 'error', from: { path: '^libs/' }, to: { path: '^apps/' } },
    { name: 'only-du-imports-apps', severity: 'error', from: { path: '^apps/([^/]+)/', pathNot: '^apps/du/' }, to: { path: '^apps/', pathNot: '^apps/$1/' } },
    { name: 'tests-use-the-front-door', comment: 'test/ speaks to services over HTTP', severity: 'error', from: { path: '^test/' }, to: { path: '^apps/' } },
    {
      name: 'testing-is-for-specs',
      severity: 'error',
      from: { path: ['^apps/', '^libs/'], pathNot: ['\\.spec\\.ts$', lib('testing')] },
      to: { path: lib('testing') },
    },
    {
      name: 'slices-share-service-and-schema-only',
      severity: 'error',
      from: { path: '^apps/[^/]+/src/([^/]+)/' },
      to: { path: '^apps/[^/]+/src/([^/]+)/', pathNot: ['^apps/[^/]+/src/$1/', '\\.(service|schema)\\.ts$'] },
    },
    {
      name: 'no-circles-of-folders',
      comment: 'two slices or rooms that need each other are one; who is below says what it needs from above by an abstract class (apps/image-svc/src/image/image-users.service.ts)',
      severity: 'error',
      scope: 'folder',
      from: { path: '^(apps|libs)/[^/]+/src/' },
      to: { circular: true },
    },
    { name: 'no-unresolved', severity: 'error', from: {}, to: { couldNotResolve: true } },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '(^|/)(dist|generated)/' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.base.json' },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['airdock-source', 'import', 'node', 'default'], extensions: ['.ts', '.js'] },
  },
};
