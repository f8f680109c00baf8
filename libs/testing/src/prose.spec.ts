import { existsSync, globSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = join(import.meta.dirname, '../../..');
const maxLength = 160;

/** Lines of prose that are too long, as `line: text`: tables, code and where links lead do not count. */
function longLines(markdown: string): string[] {
  let isCode = false;
  return markdown.split('\n').flatMap((line, index) => {
    if (/^\s*(```|~~~)/.test(line)) isCode = !isCode;
    if (isCode || /^\s*\|/.test(line)) return [];
    const text = line.replace(/\]\([^)]*\)/g, ']').trim();
    return text.length > maxLength ? [`${index + 1}: ${text}`] : [];
  });
}

const notOurs = new Set(['node_modules', 'dist', '.git', '.nx']);
const documents = globSync('**/*.md', { cwd: root, exclude: (path) => notOurs.has(basename(path)) }).sort();

/** Links to files of the project that are not there, without their anchors. */
const deadLinks = (path: string, markdown: string): string[] =>
  [...markdown.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = '']) => target)
    .filter((target) => !/^[a-z]+:|^#/.test(target))
    .filter((target) => !existsSync(join(root, dirname(path), target.replace(/#.*/, ''))));

describe('the documents', () => {
  it.each(documents)('%s has no line of prose over 160 characters', (path) => {
    expect(longLines(readFileSync(join(root, path), 'utf8'))).toEqual([]);
  });

  it.each(documents)('%s has no link to a file that is not there', (path) => {
    expect(deadLinks(path, readFileSync(join(root, path), 'utf8'))).toEqual([]);
  });
});

it('a line of prose is measured without where its links lead', () => {
  const words = 'word '.repeat(30).trim();
  expect(longLines(`${words} [text](https://example.com/${'a'.repeat(200)})`)).toEqual([]);
  expect(longLines(`${words} and more words\n| ${words} ${words} |\n\`\`\`\n${words} ${words}\n\`\`\``)).toHaveLength(
    1,
  );
});
