/** `none` runs no registry, `local` runs one in the DU, `external` uses one that someone else runs. */
export const registryModes = ['none', 'local', 'external'] as const;
/** One of the modes of the registry. */
export type RegistryMode = (typeof registryModes)[number];

/** What plainly means that there is to be no registry. */
const offWords = ['none', 'off', 'no', 'false', 'disabled'];
const knownWords = [...offWords, 'local', 'external'];
/** What templates and other languages write for nothing: perhaps that is meant, and perhaps a value was lost. */
const emptyWords = ['null', 'nil', '~', '0', 'n', '<nil>', '<no value>', 'undefined', 'nothing'];
/** No longer word can be a misspelt one of those. */
const maxMisspelt = 16;

/** Either a mode, perhaps with something to be said about it, or what is wrong. */
export type ReadRegistryMode = { mode: RegistryMode; warning?: string } | { error: string };

/**
 * Reads `privateRegistryType` of airctl's configuration file, whose rule is that anything but none is on. What plainly
 * means off is off, in any case; a known value is that value; what looks like a misspelt one would do the opposite of
 * what was meant, and is an error; of anything else a warning says that it is on.
 */
export function readRegistryMode(value: unknown): ReadRegistryMode {
  if (value === undefined || value === null || value === false) return { mode: 'none' };
  if (value === true) return { mode: 'local', warning: warningOf('true') };
  if (typeof value !== 'string' && typeof value !== 'number')
    return { error: `must be one of ${registryModes.join(', ')}` };
  const text = String(value).trim();
  const word = text.toLowerCase();
  if (word === '' || offWords.includes(word)) return { mode: 'none' };
  if (word === 'local' || word === 'external') return { mode: word };
  // Perhaps in quotes, of which there were two pairs.
  const bare = word.replaceAll(/^["'`.,;]{1,3}|["'`.,;]{1,3}$/g, '');
  const meant =
    bare === '' || emptyWords.includes(bare)
      ? 'none'
      : word.length <= maxMisspelt
        ? knownWords.find((known) => looksLike(bare, known))
        : undefined;
  if (meant !== undefined)
    return { error: `is ${JSON.stringify(text)}: is ${meant} meant? The values are ${registryModes.join(', ')}` };
  return { mode: 'local', warning: warningOf(text) };
}

const warningOf = (text: string): string =>
  `privateRegistryType is ${JSON.stringify(text.slice(0, 60))}, which counts as local: airctl takes anything but none for on. The values are ${registryModes.join(', ')}`;

/** A beginning of it, or so few letters away that it is no other word. */
function looksLike(word: string, known: string): boolean {
  if (word === known) return true;
  if (word.length >= 3 && known.startsWith(word)) return true;
  const allowed = known.length <= 2 ? 0 : known.length <= 5 ? 1 : 2;
  return Math.abs(word.length - known.length) <= allowed && distance(word, known) <= allowed;
}

/** How many letters have to be put in, left out, replaced or swapped with the next one. Optimal string alignment. */
function distance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, at) => at)];
  const at = (row: number, column: number) => rows[row]?.[column] ?? Number.POSITIVE_INFINITY;
  for (let i = 1; i <= a.length; i++) {
    rows.push([i]);
    for (let j = 1; j <= b.length; j++) {
      const replaced = at(i - 1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1);
      const swapped =
        i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
          ? at(i - 2, j - 2) + 1
          : Number.POSITIVE_INFINITY;
      rows[i]?.push(Math.min(at(i - 1, j) + 1, at(i, j - 1) + 1, replaced, swapped));
    }
  }
  return at(a.length, b.length);
}
