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
  const { entries, tables } = new TomlScanner(text).scan();
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
class TomlScanner {
  readonly entries: Entry[] = [];
  readonly tables: Table[] = [];
  #at = 0;
  /** Undefined below an array of tables, whose entries have no one place. */
  #current: string[] | undefined = [];

  constructor(private readonly text: string) {}

  scan(): this {
    while (this.#at < this.text.length) {
      const lineStart = this.#at;
      this.#skipBlanks();
      const char = this.text[this.#at];
      if (char === '[') this.#table(this.text.slice(lineStart, this.#at));
      else if (char !== undefined && !'#\r\n'.includes(char)) this.#entry();
      else this.#skipLine();
    }
    return this;
  }

  #table(indent: string): void {
    const isArray = this.text[this.#at + 1] === '[';
    this.#at += isArray ? 2 : 1;
    const path = this.#keys();
    this.#skipLine();
    this.#current = isArray ? undefined : path;
    if (!isArray) this.tables.push({ path, indent, end: this.#at });
  }

  #entry(): void {
    const path = this.#keys();
    this.#at++; // =
    this.#skipBlanks();
    const start = this.#at;
    const end = this.#value();
    if (this.#current) this.entries.push({ path: [...this.#current, ...path], start, end });
    this.#skipLine();
  }

  #keys(): string[] {
    const path: string[] = [];
    for (;;) {
      this.#skipBlanks();
      path.push(this.#key());
      this.#skipBlanks();
      if (path.length > maxPath) throw new Error('too deep');
      if (this.text[this.#at] !== '.') return path;
      this.#at++;
    }
  }

  #key(): string {
    const quote = this.text[this.#at];
    if (quote === '"') return JSON.parse(this.#string()) as string;
    if (quote === "'") return this.#string().slice(1, -1);
    const bare = /[A-Za-z0-9_-]+/y;
    bare.lastIndex = this.#at;
    const [found = ''] = bare.exec(this.text) ?? [];
    if (!found) throw new Error('no key');
    this.#at += found.length;
    return found;
  }

  /** Past a string that begins here. */
  #string(): string {
    const { text } = this;
    const start = this.#at;
    const quote = text[start] as string;
    const isLong = text.startsWith(quote.repeat(3), start);
    const closing = isLong ? quote.repeat(3) : quote;
    this.#at += closing.length;
    while (this.#at < text.length && !text.startsWith(closing, this.#at))
      this.#at += quote === '"' && text[this.#at] === '\\' ? 2 : 1;
    this.#at += closing.length;
    // Up to two quotes may stand before the closing three.
    while (isLong && text[this.#at] === quote) this.#at++;
    return text.slice(start, this.#at);
  }

  /** Past a value; returns where it ends. */
  #value(): number {
    let depth = 0;
    let end = this.#at;
    while (this.#at < this.text.length) {
      const char = this.text[this.#at] as string;
      if (char === '"' || char === "'") this.#string();
      else if (char === '#') {
        if (depth === 0) return end;
        this.#skipLine();
        continue;
      } else if (char === '\n' && depth === 0) return end;
      else {
        if (char === '[' || char === '{') depth++;
        if (char === ']' || char === '}') depth--;
        this.#at++;
        if (/\s/.test(char)) continue;
      }
      end = this.#at;
    }
    return end;
  }

  #skipBlanks(): void {
    while (this.text[this.#at] === ' ' || this.text[this.#at] === '\t') this.#at++;
  }

  #skipLine(): void {
    const end = this.text.indexOf('\n', this.#at);
    this.#at = end < 0 ? this.text.length : end + 1;
  }
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
