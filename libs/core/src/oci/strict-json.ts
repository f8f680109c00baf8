import { assertJsonBounds } from '../bounded-json.js';

/**
 * JSON that every reader understands alike. A manifest is read here, by the registry and by what runs the image, in
 * different languages; where they would see different things it is refused.
 */

/** Deeper than any document of an image, and far less than what makes parsers fail. */
const maxDepth = 100;
/**
 * Many times what the largest index, manifest or configuration has: beyond that not the bytes cost time, but what is in
 * them.
 */
export const documentBounds = { maxBytes: 16 * 1024 * 1024, maxValues: 300_000, maxMembers: 10_000, maxDepth };

/**
 * Parses UTF-8 without a byte order mark. Throws a SyntaxError for what is no JSON, for repeated keys, for more than
 * 100 levels, and for more values than a document has.
 */
export function parseStrictJson(bytes: Uint8Array): unknown {
  assertJsonBounds(bytes, documentBounds);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new SyntaxError('not UTF-8', { cause });
  }
  const value: unknown = JSON.parse(text);
  checkKeysAndDepth(text);
  return value;
}

/** `text` is known to be JSON, so that a string before a colon is a key. */
function checkKeysAndDepth(text: string): void {
  const marks = /[{}[\]"]/g;
  const colon = /[ \t\r\n]*:/y;
  const open: Set<string>[] = [];
  for (let mark = marks.exec(text); mark; mark = marks.exec(text)) {
    if (mark[0] === '{' || mark[0] === '[') {
      if (open.push(new Set()) > maxDepth) throw new SyntaxError(`more than ${maxDepth} levels`);
    } else if (mark[0] !== '"') open.pop();
    else {
      const end = endOfString(text, mark.index);
      marks.lastIndex = end;
      colon.lastIndex = end;
      if (!colon.test(text)) continue;
      const key = JSON.parse(text.slice(mark.index, end)) as string;
      if (open.at(-1)?.has(key)) throw new SyntaxError(`the key ${JSON.stringify(key.slice(0, 100))} is repeated`);
      open.at(-1)?.add(key);
    }
  }
}

/** Behind the quote that ends the string: the first one with an even number of backslashes before it. */
function endOfString(text: string, start: number): number {
  for (let quote = text.indexOf('"', start + 1); ; quote = text.indexOf('"', quote + 1)) {
    let backslashes = 0;
    while (text[quote - 1 - backslashes] === '\\') backslashes++;
    if (backslashes % 2 === 0) return quote + 1;
  }
}
