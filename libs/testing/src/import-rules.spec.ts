import { execFile } from 'node:child_process';
import { mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { tempDir } from './servers.js';

const run = promisify(execFile);
const repository = join(import.meta.dirname, '../../..');

/** Cruises a little tree with one import in it, and returns the names of the rules that it breaks. */
async function brokenRules(files: Record<string, string>): Promise<string[]> {
  await using folder = await tempDir('rules');
  for (const [name, text] of Object.entries(files)) {
    await mkdir(dirname(join(folder.path, name)), { recursive: true });
    await writeFile(join(folder.path, name), text);
  }
  await symlink(join(repository, 'node_modules'), join(folder.path, 'node_modules'));
  await writeFile(join(folder.path, 'tsconfig.base.json'), '{}');
  const program = join(repository, 'node_modules/.bin/depcruise');
  const options = [
    '--config',
    join(repository, '.dependency-cruiser.mjs'),
    '--output-type',
    'json',
    ...new Set(Object.keys(files).map((name) => name.split('/')[0] ?? '')),
  ];
  const { stdout } = await run(program, options, { cwd: folder.path }).catch((error: { stdout: string }) => error);
  await rm(join(folder.path, 'node_modules'));
  const { summary } = JSON.parse(stdout) as { summary: { violations: { rule: { name: string } }[] } };
  return [...new Set(summary.violations.map(({ rule }) => rule.name))];
}

const to = (path: string) => `import { x } from '${path}';\nexport const y = x;\n`;
const x = 'export const x = 1;\n';

describe('the import rules', () => {
  it.each([
    ['core using the file system', { 'libs/core/src/a.ts': "import { x } from 'node:fs';\nexport const y = x;\n" }, 'core-is-pure'],
    ['core using an adapter', { 'libs/core/src/a.ts': to('../../adapters/src/b.js'), 'libs/adapters/src/b.ts': x }, 'core-is-pure'],
    ['an adapter using the platform', { 'libs/adapters/src/a.ts': to('../../platform/src/b.js'), 'libs/platform/src/b.ts': x }, 'adapters-know-core-only'],
    ['the platform using an adapter', { 'libs/platform/src/a.ts': to('../../adapters/src/b.js'), 'libs/adapters/src/b.ts': x }, 'platform-knows-core-only'],
    ['a lib using an app', { 'libs/adapters/src/a.ts': to('../../../apps/image-svc/src/b.js'), 'apps/image-svc/src/b.ts': x }, 'no-app-in-libs'],
    ['a service using another service', { 'apps/host-svc/src/a.ts': to('../../image-svc/src/b.js'), 'apps/image-svc/src/b.ts': x }, 'only-du-imports-apps'],
    ['a test using an app', { 'test/e2e/a.ts': to('../../apps/image-svc/src/b.js'), 'apps/image-svc/src/b.ts': x }, 'tests-use-the-front-door'],
    [
      'a service using the test library',
      { 'apps/host-svc/src/a.ts': to('../../../libs/testing/src/b.js'), 'libs/testing/src/b.ts': x },
      'testing-is-for-specs',
    ],
    [
      "a slice using another slice's table",
      { 'apps/image-svc/src/push/a.ts': to('../image/b.entity.js'), 'apps/image-svc/src/image/b.entity.ts': x },
      'slices-share-service-and-schema-only',
    ],
    [
      'two files that import each other',
      { 'libs/core/src/a.ts': to('./b.js'), 'libs/core/src/b.ts': "import { y } from './a.js';\nexport const x = 1;\nexport const z = y;\n" },
      'no-cycles',
    ],
  ] as const)('refuse %s', async (_what, files, rule) => expect(await brokenRules(files)).toContain(rule));

  it('allow the DU to use every service, and a slice the service of another', async () => {
    const files = {
      'apps/du/src/a.ts': to('../../image-svc/src/b.service.js'),
      'apps/image-svc/src/b.service.ts': x,
      'apps/image-svc/src/push/c.ts': to('../image/d.service.js'),
      'apps/image-svc/src/image/d.service.ts': x,
    };
    expect(await brokenRules(files)).toEqual([]);
  });
});
