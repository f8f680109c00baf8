/**
 * JSON that every reader understands alike. A manifest is read here, by the registry and by what runs the image, in different languages; where they
 * would see different things it is refused.
 */

/** Deeper than any document of an image, and far less than what makes parsers fail. */
const maxDepth = 100;

/** Parses UTF-8 without a byte order mark. Throws a SyntaxError for what is no JSON, for repeated keys, and for more than 100 levels. */
export function parseStrictJson(bytes: Uint8Array): unknown {
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
  const open: Set<string>[] = [];
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === '{' || char === '[') {
      if (open.push(new Set()) > maxDepth) throw new SyntaxError(`more than ${maxDepth} levels`);
    } else if (char === '}' || char === ']') open.pop();
    else if (char === '"') {
      const start = at++;
      for (; text[at] !== '"'; at++) if (text[at] === '\\') at++;
      let after = at + 1;
      while (/[ \t\r\n]/.test(text[after] ?? '')) after++;
      if (text[after] !== ':') continue;
      const key = JSON.parse(text.slice(start, at + 1)) as string;
      if (open.at(-1)?.has(key)) throw new SyntaxError(`the key ${JSON.stringify(key.slice(0, 100))} is repeated`);
      open.at(-1)?.add(key);
    }
  }
}
