/**
 * JSON of somebody who may mean harm. What parsing costs is not the bytes but the values: `{},{},…` takes a hundred
 * times its length in memory. So they are counted first, in one pass without memory of its own.
 */
export interface JsonBounds {
  maxBytes: number;
  /** Elements, members, and what holds them. */
  maxValues: number;
  /** Default 32. */
  maxDepth?: number;
  /** Of one object: those with very many take seconds. Default 1,000. */
  maxMembers?: number;
}

const [quote, backslash, comma] = [0x22, 0x5c, 0x2c];
const [openArray, closeArray, openObject, closeObject] = [0x5b, 0x5d, 0x7b, 0x7d];

/**
 * Parses UTF-8. Throws a SyntaxError for what is no JSON, and for what is out of bounds, then without having parsed
 * anything.
 */
export function parseBoundedJson(bytes: Uint8Array, bounds: JsonBounds): unknown {
  assertJsonBounds(bytes, bounds);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new SyntaxError('not UTF-8', { cause });
  }
  return JSON.parse(text);
}

/** Throws a SyntaxError for what is out of bounds. That it is JSON is for the parser to say. */
export function assertJsonBounds(
  bytes: Uint8Array,
  { maxBytes, maxValues, maxDepth = 32, maxMembers = 1_000 }: JsonBounds,
): void {
  if (bytes.byteLength > maxBytes) throw new SyntaxError(`more than ${maxBytes} bytes`);
  /** Of each open object the members so far; of an array nothing that is ever too much. */
  const open: number[] = [];
  let values = 1;
  for (let at = 0; at < bytes.byteLength; at++) {
    const byte = bytes[at] as number;
    if (byte === quote) at = endOfString(bytes, at);
    else if (byte === comma) {
      values += 1;
      const members = (open.pop() ?? 0) + 1;
      if (members > maxMembers) throw new SyntaxError(`an object with more than ${maxMembers} members`);
      open.push(members);
    } else if (byte === openArray || byte === openObject) {
      values += 1;
      if (open.push(byte === openObject ? 1 : Number.NEGATIVE_INFINITY) > maxDepth)
        throw new SyntaxError(`more than ${maxDepth} levels`);
    } else if (byte === closeArray || byte === closeObject) open.pop();
    else continue;
    if (values > maxValues) throw new SyntaxError(`more than ${maxValues} values`);
  }
}

/** Where the quote is that ends the string: the first one with an even number of backslashes before it. */
function endOfString(bytes: Uint8Array, start: number): number {
  for (let end = bytes.indexOf(quote, start + 1); end >= 0; end = bytes.indexOf(quote, end + 1)) {
    let backslashes = 0;
    while (bytes[end - 1 - backslashes] === backslash) backslashes += 1;
    if (backslashes % 2 === 0) return end;
  }
  throw new SyntaxError('a string without an end');
}
