import { readdir, readFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import ts from 'typescript';
import { expect, it } from 'vitest';

const libraries = join(import.meta.dirname, '../..');

/** Schemas of the API say what they are in `.describe`; generated code says it in the OpenAPI document. */
const isRead = (file: string): boolean =>
  /\/src\/.*\.ts$/.test(file) && !/(\.(spec|d|schema)\.ts$|\/generated\/|^testing\/)/.test(file);

/** Exported names without a docstring. A type that has the name of a schema is that schema's. */
function undocumented(file: string, text: string): string[] {
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
  const exported = source.statements.filter(
    (statement) =>
      ts.canHaveModifiers(statement) &&
      ts.getModifiers(statement)?.some(({ kind }) => kind === ts.SyntaxKind.ExportKeyword),
  );
  const names = exported.map((statement) => {
    const names = ts.isVariableStatement(statement)
      ? statement.declarationList.declarations.map(({ name }) => name.getText())
      : [(statement as ts.DeclarationStatement).name?.getText() ?? 'default'];
    return { name: names.join(', '), isDocumented: ts.getJSDocCommentsAndTags(statement).length > 0 };
  });
  const documented = new Set(names.flatMap(({ name, isDocumented }) => (isDocumented ? [name] : [])));
  return names.filter(({ name }) => !documented.has(name)).map(({ name }) => `${file}: ${name}`);
}

it('every exported name of the libraries has a docstring', async () => {
  const entries = await readdir(libraries, { recursive: true, withFileTypes: true });
  const files = entries
    .filter((entry) => entry.isFile() && !entry.parentPath.includes('node_modules'))
    .map((entry) => relative(libraries, join(entry.parentPath, entry.name)))
    .filter((file) => isRead(file));
  expect(files.length).toBeGreaterThan(100);
  const texts = await Promise.all(files.map((file) => readFile(join(libraries, file), 'utf8')));
  expect(files.flatMap((file, index) => undocumented(file, texts[index] as string))).toEqual([]);
});

it('a name without a docstring is found', () => {
  expect(undocumented('a.ts', '/** A. */\nexport const a = 1;\nexport function b() {}\nconst c = 1;\n')).toEqual([
    'a.ts: b',
  ]);
});
