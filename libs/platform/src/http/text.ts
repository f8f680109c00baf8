import { AppError } from '@airdock/core/errors';

const nul = '\0';

/** Throws `request_invalid` for a JSON value with a NUL in a text or a key. `text` is what it was parsed from. */
export function assertNoNul(text: string, value: unknown): void {
  // Most bodies have no such escape, and are not walked through.
  if (!text.includes('\\u0000') && !text.includes(nul)) return;
  const at = findNul(value, []);
  if (at)
    throw new AppError('request_invalid', {
      detail: `${at.join('.').replaceAll(nul, '')}: a text must not hold a NUL character`.slice(0, 300),
    });
}

function findNul(value: unknown, path: string[]): string[] | undefined {
  if (typeof value === 'string') return value.includes(nul) ? path : undefined;
  if (typeof value !== 'object' || value === null) return undefined;
  // A body is bounded, and so is its depth in practice: deeper than this no request of ours is.
  if (path.length > 100) throw new AppError('request_invalid', { detail: 'the body is nested too deep' });
  for (const [key, item] of Object.entries(value)) {
    const found = key.includes(nul) ? [...path, key] : findNul(item, [...path, key.slice(0, 60)]);
    if (found) return found;
  }
  return undefined;
}

/** Throws `request_invalid` for a URL that stands for a text with a NUL. */
export function assertUrlWithoutNul(url: string): void {
  if (/%00|\0/.test(url)) throw new AppError('request_invalid', { detail: 'a text must not hold a NUL character' });
}
