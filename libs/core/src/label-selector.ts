/**
 * Labels and selectors of them, in the syntax of Kubernetes:
 * https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/ (equality and sets; not the comparisons `>`
 * and `<`).
 */
import { AppError } from './errors.js';

const name = '[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?';
const dnsLabel = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?';
/** A name of at most 63 characters, after an optional DNS subdomain and a slash. */
export const labelKey = new RegExp(`^(?:(?=[^/]{1,253}/)${dnsLabel}(?:\\.${dnsLabel})*/)?${name}$`);
/** Empty, or as the name of a key. */
export const labelValue = new RegExp(`^(?:${name})?$`);

/** Labels of a host, by key. */
export type Labels = Readonly<Record<string, string>>;

/**
 * What a label must be: one of `values`; with `not` none of them, which a missing label satisfies as well. Without
 * `values`: be there, or not.
 */
export interface Requirement {
  key: string;
  not: boolean;
  values?: string[];
}

const maxLength = 2000;
const token = /\s*(?:(==|!=|[=!,()])|([^\s=!,()]+))/y;

/**
 * Parses `role=worker,site!=b,env in (a,b),tier notin (x),gpu,!old`. The requirements must all be met; there are none
 * in an empty text. Throws `label_selector_invalid`.
 */
export function parseLabelSelector(text: string): Requirement[] {
  if (text.length > maxLength) throw invalid(`longer than ${maxLength} characters`);
  const tokens = tokensOf(text);
  let at = 0;
  const isNext = (wanted: string) => tokens[at] === wanted && ++at > 0;
  const word = (pattern: RegExp, what: string): string => {
    const found = tokens[at++] ?? '';
    if (!pattern.test(found))
      throw invalid(found === '' ? `a ${what} is missing at the end` : `${found} is no ${what}`);
    return found;
  };
  /** A value may be missing, which means the empty one. */
  const value = () =>
    at === tokens.length || tokens[at] === ',' || tokens[at] === ')' ? '' : word(labelValue, 'label value');
  const set = (): string[] => {
    if (!isNext('(')) throw invalid('a ( is missing after in or notin');
    const values = [value()];
    while (isNext(',')) values.push(value());
    if (!isNext(')')) throw invalid('a ) is missing');
    return values;
  };
  const requirement = (): Requirement => {
    if (isNext('!')) return { key: word(labelKey, 'label key'), not: true };
    const key = word(labelKey, 'label key');
    if (isNext('=') || isNext('==')) return { key, not: false, values: [value()] };
    if (isNext('!=')) return { key, not: true, values: [value()] };
    if (isNext('in')) return { key, not: false, values: set() };
    if (isNext('notin')) return { key, not: true, values: set() };
    return { key, not: false };
  };
  if (tokens.length === 0) return [];
  const requirements = [requirement()];
  while (isNext(',')) requirements.push(requirement());
  if (at < tokens.length) throw invalid(`${tokens[at]} is not expected after ${tokens.slice(0, at).join('')}`);
  return requirements;
}

/** True when all requirements are met. */
export const matchesLabels = (requirements: readonly Requirement[], labels: Labels): boolean =>
  requirements.every(({ key, not, values }) => {
    const isThere = Object.hasOwn(labels, key);
    const isMet = isThere && (values === undefined || values.includes(labels[key] ?? ''));
    return isMet !== not;
  });

function tokensOf(text: string): string[] {
  const found: string[] = [];
  token.lastIndex = 0;
  for (let match = token.exec(text); match; match = token.exec(text)) found.push(match[1] ?? match[2] ?? '');
  return found;
}

const invalid = (detail: string) => new AppError('label_selector_invalid', { detail: detail.slice(0, 200) });
