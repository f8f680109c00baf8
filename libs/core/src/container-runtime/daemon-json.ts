import { AppError } from '../errors.js';
import { parseStrictJson } from '../oci/strict-json.js';

/**
 * Docker's `daemon.json` with `mirror` (`http://127.0.0.1:5100`) as the first of its registry mirrors; all else stays as it is. Returns the text itself
 * when it already says so. `null` is a file that is not there. Throws `host_file_refused` for what is no JSON object: it is not ours to repair.
 */
export function mergeDaemonJson(text: string | null, mirror: string): string {
  const settings = readSettings(text ?? '');
  const mirrors = settings['registry-mirrors'] ?? [];
  if (!Array.isArray(mirrors) || !mirrors.every((one) => typeof one === 'string')) throw refuse('has registry-mirrors that are no list of strings');
  if (text !== null && hasMirror(mirrors, mirror)) return text;
  return `${JSON.stringify({ ...settings, 'registry-mirrors': [mirror, ...mirrors] }, null, indentOf(text ?? ''))}\n`;
}

/**
 * The opposite of `mergeDaemonJson`: the text without the mirror; `before` itself when nothing else differs from it, so also null where there was no file.
 * What others have changed since stays. Throws `host_file_refused`.
 */
export function unmergeDaemonJson(text: string, before: string | null, mirror: string): string | null {
  const settings = readSettings(text);
  const mirrors = settings['registry-mirrors'];
  if (!Array.isArray(mirrors) || !hasMirror(mirrors.map(String), mirror)) return text;
  const others = mirrors.filter((one) => !hasMirror([String(one)], mirror));
  const { 'registry-mirrors': _, ...rest } = settings;
  const wanted = Object.fromEntries(
    Object.keys(settings).flatMap((key) => (key !== 'registry-mirrors' ? [[key, rest[key]]] : others.length > 0 ? [[key, others]] : [])),
  );
  const kept = before?.trim() ? readSettings(before) : {};
  if (JSON.stringify(wanted) === JSON.stringify(kept)) return before;
  return `${JSON.stringify(wanted, null, indentOf(text))}\n`;
}

/** Docker shows mirrors with a slash at their end. */
export const hasMirror = (mirrors: readonly string[], mirror: string): boolean => mirrors.some((one) => one.replace(/\/$/, '') === mirror);

const refuse = (detail: string) => new AppError('host_file_refused', { detail: `daemon.json ${detail}` });

const indentOf = (text: string): string => /^([ \t]+)"/m.exec(text)?.[1] ?? '  ';

function readSettings(text: string): Record<string, unknown> {
  let content: unknown = {};
  try {
    if (text.trim()) content = parseStrictJson(new TextEncoder().encode(text));
  } catch {
    throw refuse('is not valid JSON');
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content)) throw refuse('is not a JSON object');
  return content as Record<string, unknown>;
}
