/**
 * What a host says, made harmless for terminals, log lines and answers. Left out are escape sequences (ECMA-48),
 * control characters but for tabs and line ends, and what turns the direction of text or hides in it (Unicode TR 36,
 * bidirectional formatting). Takes time in proportion to the length.
 */
export function cleanText(text: string, maxLength = 20_000): string {
  const bounded = text.length > maxLength ? `${text.slice(0, maxLength)}…` : text;
  const clean = unsafe.test(bounded) ? bounded.replace(escapeSequences, '').replace(unsafeAll, '') : bounded;
  return clean.replace(/\p{Surrogate}/gu, '\ufffd');
}

/** The same as one line. */
export const cleanLine = (text: string, maxLength = 200): string =>
  cleanText(text.slice(0, maxLength), maxLength)
    .replace(/[\t\n]/g, ' ')
    .trim();

/** The strings in a value, at any depth, cleaned. What is nested deeper than documents of ours are is left out. */
export function cleanDeep(value: unknown, depth = 8): unknown {
  if (typeof value === 'string') return cleanText(value);
  if (typeof value !== 'object' || value === null || value instanceof Date) return value;
  if (depth === 0) return undefined;
  if (Array.isArray(value)) return value.map((one) => cleanDeep(one, depth - 1));
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [cleanText(key), cleanDeep(one, depth - 1)]));
}

const characters =
  '\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb';
const unsafe = new RegExp(`[${characters}]`);
const unsafeAll = new RegExp(`[${characters}]`, 'g');
// CSI … final byte; OSC, DCS, SOS, PM and APC up to their end; other sequences of two characters. Each part ends where
// the next can begin.
const escapeSequences = new RegExp(
  [
    '(?:\\u001b\\[|\\u009b)[0-?]*[ -/]*[@-~]',
    '(?:\\u001b[\\]PX^_]|[\\u0090\\u0098\\u009d-\\u009f])[^\\u0007\\u001b\\u009c]*(?:\\u0007|\\u001b\\\\|\\u009c)?',
    '\\u001b[ -/]*[0-~]',
  ].join('|'),
  'g',
);
