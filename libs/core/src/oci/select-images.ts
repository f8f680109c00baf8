import { AppError } from '../errors.js';

/**
 * The images that a selection names, in their own order. A pattern has `*` for any characters and `?` for one; anything else is a name in full. Throws
 * `image_not_found` with everything that names nothing.
 */
export function selectImages<T extends { names: readonly string[] }>(images: readonly T[], selection: readonly string[] | undefined): T[] {
  if (!selection) return [...images];
  const matchers = selection.map((text) => ({ text, matches: matcherOf(text) }));
  const missing = matchers.filter(({ matches }) => !images.some(({ names }) => names.some(matches))).map(({ text }) => text);
  if (missing.length > 0) throw new AppError('image_not_found', { detail: `not in the bundle: ${missing.slice(0, 20).join(', ')}`, missing });
  return images.filter(({ names }) => names.some((name) => matchers.some(({ matches }) => matches(name))));
}

function matcherOf(text: string): (name: string) => boolean {
  return /[*?]/.test(text) ? (name) => matchesPattern(name, text) : (name) => name === text;
}

/** A pattern as `selectImages` has them. In steps of at most the product of both lengths, whatever the pattern: it comes from a request. */
export function matchesPattern(name: string, pattern: string): boolean {
  let at = 0;
  let star = -1;
  let starAt = 0;
  let position = 0;
  while (position < name.length) {
    if (pattern[at] === '*') {
      star = at++;
      starAt = position;
    } else if (pattern[at] === '?' || pattern[at] === name[position]) {
      at++;
      position++;
    } else if (star >= 0) {
      // The last star takes one more character.
      at = star + 1;
      position = ++starAt;
    } else return false;
  }
  return pattern.slice(at).replaceAll('*', '') === '';
}
