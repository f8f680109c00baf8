import { execFile } from 'node:child_process';
import { mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { tempDir } from './servers.js';

const run = promisify(execFile);
const repository = join(import.meta.dirname, '../../..');

type Table = Record<string, readonly string[]>;
const { libraries, rooms } = (await import(join(repository, '.dependency-cruiser.mjs'))) as {
  libraries: Table & { testing: string[] };
  rooms: Record<string, Table>;
};

interface Violation {
  from: string;
  to: string;
  rule: { name: string };
}

/** Cruises a little tree of sources. */
async function violations(files: Record<string, string>): Promise<Violation[]> {
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
  return (JSON.parse(stdout) as { summary: { violations: Violation[] } }).summary.violations;
}

const brokenRules = async (files: Record<string, string>): Promise<string[]> => [
  ...new Set((await violations(files)).map(({ rule }) => rule.name)),
];

/**
 * Folders that import each other, each from each, and which of that the rules whose names begin with `prefix` refuse:
 * `a → b`.
 */
async function refusedPairs(folders: Record<string, string>, prefix: string): Promise<string[]> {
  const pairs = Object.keys(folders).flatMap((from) =>
    Object.keys(folders).flatMap((other) => (from === other ? [] : [[from, other] as const])),
  );
  const sources = Object.values(folders).map((folder) => [`${folder}/x.ts`, x]);
  const imports = pairs.map(([from, other]) => {
    const folder = folders[from] as string;
    return [`${folder}/to-${other}.ts`, to(`${relative(folder, folders[other] as string)}/x.js`)];
  });
  const found = (await violations(Object.fromEntries([...sources, ...imports]))).filter(({ rule }) =>
    rule.name.startsWith(prefix),
  );
  const nameOf = (file: string) => Object.keys(folders).find((name) => dirname(file) === folders[name]);
  return found.map((violation) => `${nameOf(violation.from)} → ${nameOf(violation.to)}`).toSorted();
}

/** What a table of allowed imports refuses. */
const refusedBy = (table: Table): string[] =>
  Object.entries(table)
    .flatMap(([from, allowed]) =>
      Object.keys(table).flatMap((other) => (other === from || allowed.includes(other) ? [] : [`${from} → ${other}`])),
    )
    .toSorted();

const to = (path: string) => `import { x } from '${path}';\nexport const y = x;\n`;
const x = 'export const x = 1;\n';

describe('the import rules', () => {
  it.each([
    [
      'core using the file system',
      { 'libs/core/src/a.ts': "import { x } from 'node:fs';\nexport const y = x;\n" },
      'core-is-pure',
    ],
    [
      'a library using the framework',
      { 'libs/oci/src/image/a.ts': to('@nestjs/common') },
      'frameworks-stay-in-platform-and-apps',
    ],
    [
      'a library using an app',
      { 'libs/oci/src/image/a.ts': to('../../../../apps/image-svc/src/b.js'), 'apps/image-svc/src/b.ts': x },
      'libs-oci',
    ],
    [
      'a room using a file beside the rooms',
      { 'libs/oci/src/image/a.ts': to('../b.js'), 'libs/oci/src/b.ts': x },
      'room-oci-image',
    ],
    [
      'a service using another service',
      { 'apps/host-svc/src/a.ts': to('../../image-svc/src/b.js'), 'apps/image-svc/src/b.ts': x },
      'only-du-imports-apps',
    ],
    [
      'a test using an app',
      { 'test/e2e/a.ts': to('../../apps/image-svc/src/b.js'), 'apps/image-svc/src/b.ts': x },
      'tests-use-the-front-door',
    ],
    [
      'a service using the test library',
      { 'apps/host-svc/src/a.ts': to('../../../libs/testing/src/b.js'), 'libs/testing/src/b.ts': x },
      'testing-is-for-specs',
    ],
    [
      'a service using what platform offers to specs',
      { 'apps/host-svc/src/a.ts': to('../../../libs/platform/src/testing/b.js'), 'libs/platform/src/testing/b.ts': x },
      'platform-testing-is-for-specs',
    ],
    [
      "a slice using another slice's table",
      { 'apps/image-svc/src/push/a.ts': to('../image/b.entity.js'), 'apps/image-svc/src/image/b.entity.ts': x },
      'slices-share-service-and-schema-only',
    ],
    [
      'a service starting a program',
      { 'apps/host-svc/src/a.ts': "import { spawn } from 'node:child_process';\nexport const y = spawn;\n" },
      'programs-are-started-in-one-place',
    ],
    [
      'two files that import each other',
      {
        'libs/core/src/a.ts': to('./b.js'),
        'libs/core/src/b.ts': "import { y } from './a.js';\nexport const x = 1;\nexport const z = y;\n",
      },
      'no-cycles',
    ],
    [
      'two slices that need each other',
      {
        'apps/host-svc/src/host/a.service.ts': to('../tunnel/b.service.js'),
        'apps/host-svc/src/tunnel/b.service.ts': x,
        'apps/host-svc/src/tunnel/c.service.ts': to('../host/d.service.js'),
        'apps/host-svc/src/host/d.service.ts': x,
      },
      'no-circles-of-folders',
    ],
  ] as const)('refuse %s', async (_what, files, rule) => expect(await brokenRules(files)).toContain(rule));

  it('let each library import the libraries of its row, and no other', async () => {
    const folders = Object.fromEntries(Object.keys(libraries).map((name) => [name, `libs/${name}/src`]));
    const { testing: _everybody, ...others } = folders;
    expect(await refusedPairs(others, 'libs-')).toEqual(
      refusedBy(libraries).filter((pair) => !pair.includes('testing')),
    );
    expect((await refusedPairs(folders, 'libs-testing')).length).toBe(
      Object.keys(others).length - libraries.testing.length,
    );
  });

  it.each(Object.entries(rooms))(
    'let each room of %s import the rooms of its row, and no other',
    async (library, table) => {
      const folders = Object.fromEntries(Object.keys(table).map((name) => [name, `libs/${library}/src/${name}`]));
      expect(await refusedPairs(folders, 'room-')).toEqual(refusedBy(table));
    },
  );

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
