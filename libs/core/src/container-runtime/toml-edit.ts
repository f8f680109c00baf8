/**
 * One change in a TOML text that leaves every other byte as it is: there is no library for that. The text is scanned
 * only for where tables and keys stand; that the result means what it should is checked by a real parser, and what
 * cannot be done this way is refused.
 */
import { parse } from 'smol-toml';
import { AppError } from '../errors.js';

/** Keys of one path. Every entry has the path of its table: long ones would multiply. */
const maxPath = 64;

interface Entry {
  /** Keys of the table and of the entry itself. */
  path: string[];
  start: number;
  end: number;
}
interface Table {
  path: string[];
  indent: string;
  /** After its line. */
  end: number;
}

/** Sets `key` in `table` to a string. Throws `host_file_refused`. */
export function setTomlString(text: string, table: readonly string[], key: string, value: string): string {
  if (text.startsWith('\ufeff')) return `\ufeff${setTomlString(text.slice(1), table, key, value)}`;
  const before = parse(text);
  let after: string;
  try {
    after = edit(text, table, key, JSON.stringify(value));
    if (canonical(parse(after)) === canonical(withValue(before, [...table, key], value))) return after;
  } catch (error) {
    if (error instanceof AppError) throw error;
  }
  throw new AppError('host_file_refused', {
    detail: `${[...table, key].map(formatKey).join('.')} cannot be set without changing more of the file`,
  });
}

function edit(text: string, table: readonly string[], key: string, value: string): string {
  const { entries, tables } = scan(text);
  const entry = entries.find(({ path }) => isSame(path, [...table, key]));
  if (entry) return text.slice(0, entry.start) + value + text.slice(entry.end);
  const own = tables.find(({ path }) => isSame(path, table));
  const newline = text.includes('\r\n') ? '\r\n' : '\n';
  if (own) {
    const isLast = own.end === text.length && !text.endsWith('\n');
    return `${text.slice(0, own.end)}${isLast ? newline : ''}${own.indent}  ${key} = ${value}${newline}${text.slice(own.end)}`;
  }
  const gap = text.endsWith('\n') ? newline : newline + newline;
  return `${text}${gap}${formatTable(table)}${newline}  ${key} = ${value}${newline}`;
}

const isSame = (a: readonly string[], b: readonly string[]) =>
  a.length === b.length && a.every((key, index) => key === b[index]);
const formatKey = (key: string): string => (/^[A-Za-z0-9_-]+$/.test(key) ? key : JSON.stringify(key));

/** `[a."b.c".d]` */
export const formatTable = (path: readonly string[]): string => `[${path.map(formatKey).join('.')}]`;

/** Where tables and keys stand in a text that is valid TOML (https://toml.io/en/v1.0.0). */
function scan(text: string): { entries: Entry[]; tables: Table[] } {
  const entries: Entry[] = [];
  const tables: Table[] = [];
  let at = 0;
  let current: string[] | undefined = [];

  const blanks = () => {
    while (text[at] === ' ' || text[at] === '\t') at++;
  };
  const toLineEnd = () => {
    const end = text.indexOf('\n', at);
    at = end < 0 ? text.length : end + 1;
  };
  /** Past a string that begins here. */
  const string = (): string => {
    const quote = text[at] as string;
    const isLong = text.startsWith(quote.repeat(3), at);
    const closing = isLong ? quote.repeat(3) : quote;
    const start = at;
    at += closing.length;
    while (at < text.length && !text.startsWith(closing, at)) at += quote === '"' && text[at] === '\\' ? 2 : 1;
    at += closing.length;
    // Up to two quotes may stand before the closing three.
    while (isLong && text[at] === quote) at++;
    return text.slice(start, at);
  };
  const keys = (): string[] => {
    const path: string[] = [];
    for (;;) {
      blanks();
      if (text[at] === '"') path.push(JSON.parse(string()) as string);
      else if (text[at] === "'") path.push(string().slice(1, -1));
      else {
        const bare = /[A-Za-z0-9_-]+/y;
        bare.lastIndex = at;
        const [found = ''] = bare.exec(text) ?? [];
        if (!found) throw new Error('no key');
        at += found.length;
        path.push(found);
      }
      blanks();
      if (path.length > maxPath) throw new Error('too deep');
      if (text[at] !== '.') return path;
      at++;
    }
  };
  /** Past a value; returns where it ends. */
  const value = (): number => {
    let depth = 0;
    let end = at;
    while (at < text.length) {
      const char = text[at] as string;
      if (char === '"' || char === "'") string();
      else if (char === '#') {
        if (depth === 0) return end;
        toLineEnd();
        continue;
      } else if (char === '\n' && depth === 0) return end;
      else {
        if (char === '[' || char === '{') depth++;
        if (char === ']' || char === '}') depth--;
        at++;
        if (/\s/.test(char)) continue;
      }
      end = at;
    }
    return end;
  };

  while (at < text.length) {
    const lineStart = at;
    blanks();
    const char = text[at];
    if (char === '[') {
      const indent = text.slice(lineStart, at);
      const isArray = text[at + 1] === '[';
      at += isArray ? 2 : 1;
      const path = keys();
      toLineEnd();
      // Entries below an array of tables have no one place.
      current = isArray ? undefined : path;
      if (!isArray) tables.push({ path, indent, end: at });
    } else if (char !== undefined && !'#\r\n'.includes(char)) {
      const path = keys();
      at++; // =
      blanks();
      const start = at;
      const end = value();
      if (current) entries.push({ path: [...current, ...path], start, end });
      toLineEnd();
    } else toLineEnd();
  }
  return { entries, tables };
}

function withValue(
  content: Record<string, unknown>,
  [key = '', ...rest]: readonly string[],
  value: string,
): Record<string, unknown> {
  return {
    ...content,
    [key]: rest.length === 0 ? value : withValue((content[key] ?? {}) as Record<string, unknown>, rest, value),
  };
}

/** Equal for equal content, whatever the order of the keys. */
const canonical = (content: unknown): string =>
  JSON.stringify(content, (_, value: unknown) =>
    typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
