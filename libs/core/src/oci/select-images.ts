import { AppError } from '../errors.js';
import { isDigest } from './digest.js';
import { parseReference, type Reference, withoutDigest } from './reference.js';

interface Selectable {
  /** Upstream references as `formatReference` writes them. */
  names: readonly string[];
  /** Undefined or null while it is not known. */
  digest?: string | null | undefined;
}

/**
 * The images that a selection names, in their own order. A pattern has `*` for any characters and `?` for one; anything
 * else is a reference as Docker reads it, whose digest, if it has one beside its tag, must be that of the image. Throws
 * `image_not_found` with everything that names nothing.
 */
export function selectImages<T extends Selectable>(
  images: readonly T[],
  selection: readonly string[] | undefined,
): T[] {
  if (!selection) return [...images];
  const matchers = selection.map((text) => ({ text, matches: matcherOf(text) }));
  const missing = matchers.filter(({ matches }) => !images.some(matches)).map(({ text }) => text);
  if (missing.length > 0)
    throw new AppError('image_not_found', { detail: `not in the bundle: ${missing.slice(0, 20).join(', ')}`, missing });
  return images.filter((image) => matchers.some(({ matches }) => matches(image)));
}

function matcherOf(text: string): (image: Selectable) => boolean {
  if (/[*?]/.test(text)) return ({ names }) => names.some((name) => matchesPattern(name, text));
  const wanted = referenceOrNothing(text);
  if (!wanted) return () => false;
  const { tag, digest } = wanted;
  const name = selectedName(text);
  const hasDigest = (own: string | null | undefined) => !tag || !digest || !isDigest(own) || own === digest;
  return (image) => image.names.includes(name) && hasDigest(image.digest);
}

/** The full name of an image that a selection names, however it is spelt. What is no reference is itself. */
export const selectedName = (text: string): string => (referenceOrNothing(text) ? withoutDigest(text) : text);

function referenceOrNothing(text: string): Reference | undefined {
  try {
    return parseReference(text);
  } catch {
    // It names nothing, and is told as that.
    return undefined;
  }
}

/**
 * A pattern as `selectImages` has them. In steps of at most the product of both lengths, whatever the pattern: it comes
 * from a request.
 */
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
