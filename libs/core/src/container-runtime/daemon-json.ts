import { type Node, type ParseError, parseTree, printParseErrorCode } from 'jsonc-parser';
import { assertJsonBounds } from '../bounded-json.js';
import { AppError } from '../errors.js';

const key = 'registry-mirrors';
const bom = '\ufeff';
const bounds = { maxBytes: 1024 * 1024, maxValues: 100_000, maxMembers: 10_000, maxDepth: 100 };

interface Mirrors {
  /** The text without a byte order mark. */
  text: string;
  root: Node;
  /** The key with its value, where it is there. */
  property: Node | undefined;
  entries: readonly Node[];
}

/**
 * Docker's `daemon.json` with `mirror` (`http://127.0.0.1:5100`) as the first of its registry mirrors; every byte that
 * does not speak of it stays. Returns the text itself when it already says so. `null` is a file that is not there.
 * Throws `host_file_refused` for what Docker does not read: it is not ours to repair.
 */
export function mergeDaemonJson(text: string | null, mirror: string): string {
  const mark = text?.startsWith(bom) ? bom : '';
  const own = JSON.stringify(mirror);
  if (text === null || text.slice(mark.length).trim() === '') return `${mark}{\n  "${key}": [${own}]\n}\n`;
  const { text: plain, root, property, entries } = read(text);
  if (isFirstMirror(entries.map(valueOf), mirror)) return text;
  const later = entries.filter((entry) => hasMirror([valueOf(entry)], mirror));
  if (later.length > 0) return mergeDaemonJson(mark + without(plain, entries, later), mirror);
  const [, list] = property?.children ?? [];
  const [first] = entries;
  if (list && first) return mark + spliced(plain, first.offset, 0, `${own},${leadOf(plain, first) || ' '}`);
  if (list) return mark + spliced(plain, list.offset, list.length, `[${own}]`);
  const last = root.children?.at(-1);
  if (last) return mark + spliced(plain, endOf(last), 0, `,${leadOf(plain, last)}"${key}": [${own}]`);
  const newline = plain.includes('\r\n') ? '\r\n' : '\n';
  return mark + spliced(plain, root.offset, root.length, `{${newline}  "${key}": [${own}]${newline}}`);
}

/**
 * The opposite of `mergeDaemonJson`: `before` where nothing else was changed since, so also null where there was no
 * file; else the text without the mirror, in which every other byte stays. Throws `host_file_refused`.
 */
export function unmergeDaemonJson(text: string, before: string | null, mirror: string): string | null {
  if (withoutMark(text).trim() === '') return text;
  const { text: plain, root, property, entries } = read(text);
  const own = entries.filter((entry) => hasMirror([valueOf(entry)], mirror));
  if (!property || own.length === 0) return text;
  if (isMergeOf(before, text, mirror)) return before;
  const members = own.length === entries.length ? [property] : own;
  const siblings = own.length === entries.length ? (root.children ?? []) : entries;
  const left = without(plain, siblings, members);
  return before === null && /^\s*\{\s*\}\s*$/.test(left) ? null : (text.startsWith(bom) ? bom : '') + left;
}

/** Docker shows mirrors with a slash at their end. */
export const hasMirror = (mirrors: readonly string[], mirror: string): boolean =>
  mirrors.some((one) => one.replace(/\/$/, '') === mirror);

/** Docker asks mirrors one after the other, and waits for each that does not answer. */
export const isFirstMirror = (mirrors: readonly string[], mirror: string): boolean =>
  hasMirror(mirrors.slice(0, 1), mirror);

function isMergeOf(before: string | null, text: string, mirror: string): boolean {
  try {
    return mergeDaemonJson(before, mirror) === text;
  } catch {
    // What was there before is no file that Docker reads: what is there now was written by others.
    return false;
  }
}

/** The text without some neighbours of a list, each with the comma that divides it from the others. */
function without(text: string, siblings: readonly Node[], removed: readonly Node[]): string {
  let left = text;
  for (const node of removed.toReversed()) {
    const at = siblings.indexOf(node);
    const [previous, next] = [siblings[at - 1], siblings[at + 1]];
    // The first that stays takes the place of the first.
    const isFirst = siblings.slice(0, at).every((one) => removed.includes(one));
    const start = isFirst || !previous ? node.offset - (next ? 0 : leadOf(text, node).length) : endOf(previous);
    left = left.slice(0, start) + left.slice(isFirst && next ? next.offset : endOf(node));
  }
  return left;
}

/** A byte order mark elsewhere is part of a value. */
const withoutMark = (text: string): string => (text.startsWith(bom) ? text.slice(bom.length) : text);
const spliced = (text: string, offset: number, length: number, content: string): string =>
  text.slice(0, offset) + content + text.slice(offset + length);
const endOf = ({ offset, length }: Node): number => offset + length;
const valueOf = ({ value }: Node): string => String(value);
/** The blanks and line ends before a value. */
const leadOf = (text: string, { offset }: Node): string => {
  let start = offset;
  while (start > 0 && ' \t\r\n'.includes(text[start - 1] as string)) start -= 1;
  return text.slice(start, offset);
};

const refuse = (detail: string) => new AppError('host_file_refused', { detail: `daemon.json ${detail}` });

/**
 * Throws `host_file_refused` for what is no JSON object to Docker, which takes neither comments nor a comma at the end.
 */
function read(whole: string): Mirrors {
  const text = withoutMark(whole);
  try {
    assertJsonBounds(new TextEncoder().encode(text), bounds);
  } catch (error) {
    throw refuse(`is not valid JSON: ${(error as Error).message}`);
  }
  const errors: ParseError[] = [];
  const root = parseTree(text, errors, { disallowComments: true });
  const [error] = errors;
  if (error)
    throw refuse(`is not valid JSON: ${complaintOf(error)} in line ${text.slice(0, error.offset).split('\n').length}`);
  if (root?.type !== 'object' || !isJson(text))
    throw refuse(root && isJson(text) ? 'is not a JSON object' : 'is not valid JSON');
  const [property, second] = (root.children ?? []).filter(({ children }) => children?.[0]?.value === key);
  if (second) throw refuse(`says ${key} twice, and Docker takes the last`);
  const list = property?.children?.[1];
  if (list && list.type !== 'null' && (list.type !== 'array' || !list.children?.every(({ type }) => type === 'string')))
    throw refuse(`has ${key} that are no list of strings`);
  return { text, root, property, entries: list?.children ?? [] };
}

/** The scanner takes some for JSON that is none. */
function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function complaintOf({ error }: ParseError): string {
  const name = printParseErrorCode(error);
  if (name === 'InvalidCommentToken') return 'a comment, which Docker does not take,';
  if (name === 'PropertyNameExpected' || name === 'ValueExpected')
    return 'a comma, colon or bracket that nothing follows';
  return name.replaceAll(/(?<=[a-z])[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
}
