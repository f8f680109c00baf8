/**
 * Reads lists of hosts: CSV, YAML and Ansible's two formats. It looks at nothing but the text; what it cannot use it
 * says for each host. Text of the inventory gets into no message: a password may stand in any place of it.
 */
import { AppError } from '@airdock/core/errors';
import { CsvError, type Info, parse } from 'csv-parse/sync';
import {
  type Document,
  isScalar,
  isSeq,
  LineCounter,
  type Pair,
  parseDocument,
  visit,
  type YAMLParseError,
} from 'yaml';
import { AnsibleInventory } from './ansible.js';
import {
  hostName,
  type InventoryHost,
  type InventoryOptions,
  invalid,
  isRecord,
  maxHosts,
  parseLabelList,
  portNumber,
  scalarText,
  secretProblem,
} from './inventory-host.js';

export type { InventoryHost, InventoryOptions };

/** The formats that inventories are read from. */
export const inventoryFormats = ['csv', 'yaml', 'ini'] as const;
/** One of the formats. */
export type InventoryFormat = (typeof inventoryFormats)[number];

/** Throws `inventory_invalid`, with `line` where that is known. */
export function parseInventory(
  format: InventoryFormat,
  content: string,
  options: InventoryOptions = {},
): InventoryHost[] {
  const text = plainText(content);
  // Lists of brackets are sections, but those of objects.
  if (format !== 'yaml' && /^\s*(?:\{|\[\s*\{|---(?:\s|$))/.test(text.slice(0, 10_000)))
    throw invalid(1, 'this is JSON or YAML: say so with the format yaml');
  const hosts = { csv: parseCsv, yaml: parseYaml, ini: parseIni }[format](text, options);
  if (hosts.length > maxHosts) throw invalid(undefined, `more than ${maxHosts} hosts`);
  return hosts;
}

/**
 * What was UTF-16, as Excel and PowerShell write it, and was read as single bytes or as UTF-8: its zeros are of no use,
 * nor what its mark has become.
 */
const plainText = (content: string): string =>
  content.includes('\0')
    ? content.replace(/^(?:\uFFFD{1,2}|\u00FF\u00FE|\u00FE\u00FF|\uFEFF)/, '').replaceAll('\0', '')
    : content.replace(/^\uFEFF/, '');

const fields = ['name', 'address', 'port', 'user', 'credential', 'hostkey', 'labels'] as const;
const normalized = (key: string) => key.trim().toLowerCase().replaceAll(/[_-]/g, '');

/** A host of a table or list, whose keys are `fields` in any spelling. */
function fromFields(line: number, values: [key: string, text: string][]): InventoryHost {
  const problems: string[] = [];
  const given = new Map<string, string>();
  for (const [key, text] of values) {
    if (text === '') continue;
    const secret = secretProblem(key, line);
    if (secret) problems.push(secret);
    else if (fields.some((field) => field === normalized(key))) given.set(normalized(key), text);
    else problems.push(`only ${fields.join(', ')} are known`);
  }
  const port = given.get('port');
  const name = hostName(given.get('name') ?? '');
  if (!name) problems.push('it has no name, or one that no host can have');
  if (port !== undefined && Number.isNaN(portNumber(port))) problems.push('its port is no number');
  return {
    line,
    name,
    address: given.get('address'),
    port: port === undefined ? undefined : portNumber(port),
    user: given.get('user'),
    credential: given.get('credential'),
    hostKey: given.get('hostkey'),
    labels: parseLabelList(given.get('labels') ?? ''),
    problem: problems[0],
  };
}

/** What stands between the columns: `sep=;` says it to Excel, else what parts the most names in the header. */
function delimiterOf(content: string): { delimiter: string; from: number } {
  const [said, delimiter] = /^sep=([,;\t|])\r?\n/i.exec(content) ?? [];
  if (said !== undefined && delimiter !== undefined) return { delimiter, from: 2 };
  const [header = ''] = content
    .slice(0, 20_000)
    .trimStart()
    .split(/[\r\n]/, 1);
  const namesWith = (one: string) =>
    header.split(one).filter((key) => fields.some((field) => field === normalized(key.replaceAll('"', '')))).length;
  const [best = ','] = [',', ';', '\t', '|'].sort((a, b) => namesWith(b) - namesWith(a));
  return { delimiter: best, from: 1 };
}

interface CsvRecord {
  line: number;
  record: string[];
}

/**
 * The records of a table; with `odd` each line by itself where the whole is none: a quote that is not closed would take
 * all that follows with it.
 */
function recordsOf(content: string, delimiter: string, firstLine: number, odd?: InventoryHost[]): CsvRecord[] {
  const options = {
    delimiter,
    info: true,
    skip_empty_lines: true,
    trim: true,
    max_record_size: 20_000,
    to: maxHosts + 2,
    relax_column_count: true,
  } as const;
  const parsed = (text: string, from: number) =>
    (parse(text, options) as unknown as { info: Info; record: string[] }[]).map(
      ({ info, record }): CsvRecord => ({ line: info.lines + from - 1, record }),
    );
  try {
    return parsed(content, firstLine);
  } catch (error) {
    if (!odd || !(error instanceof CsvError)) throw error;
  }
  return content.split('\n', maxHosts + 2).flatMap((text, index) => {
    try {
      return parsed(text, firstLine + index);
    } catch (error) {
      if (!(error instanceof CsvError)) throw error;
      odd.push({ line: firstLine + index, name: '', labels: {}, problem: problemOf(error) });
      return [];
    }
  });
}

/** Its message quotes the record. */
const problemOf = ({ code }: CsvError): string => code.toLowerCase().replaceAll('_', ' ');

/** A header line, and a line for each host. Throws `inventory_invalid`. */
function parseCsv(content: string, { partial = false }: InventoryOptions): InventoryHost[] {
  const odd: InventoryHost[] = [];
  try {
    const { delimiter, from } = delimiterOf(content);
    const [header, ...rows] = recordsOf(
      content
        .split(/\r\n|\n|\r/)
        .slice(from - 1)
        .join('\n'),
      delimiter,
      from,
      partial ? odd : undefined,
    );
    if (!header) throw invalid(undefined, 'it is empty');
    const known = header.record.map(normalized);
    if (!known.includes('name')) throw invalid(1, `the first line must name the columns: ${fields.join(', ')}`);
    // Spreadsheets write the columns that are empty, too.
    const unknown = header.record.findIndex(
      (key, index) => key !== '' && !fields.some((field) => field === known[index]) && !secretProblem(key, 1),
    );
    if (unknown >= 0) throw invalid(1, `column ${unknown + 1} has an unknown name; known are ${fields.join(', ')}`);
    const hosts = rows
      .filter(({ record }) => record.some((text) => text !== ''))
      .map(({ line, record }) => {
        const host = fromFields(
          line,
          record.flatMap((text, index): [string, string][] =>
            header.record[index] ? [[header.record[index], text]] : [],
          ),
        );
        const nameless = record.findIndex((text, index) => text !== '' && !header.record[index]);
        return nameless < 0
          ? host
          : {
              ...host,
              problem:
                host.problem ?? `column ${nameless + 1} has no name; quote what has the separator of the columns in it`,
            };
      });
    return [...hosts, ...odd];
  } catch (error) {
    if (error instanceof AppError) throw error;
    const { lines } = error as { lines?: number };
    throw invalid(lines, error instanceof CsvError ? problemOf(error) : 'no CSV');
  }
}

/**
 * A list of hosts with `fields` as keys, Ansible's tree of groups, or what `ansible-inventory --list` makes of one.
 * Throws `inventory_invalid`.
 */
function parseYaml(content: string, options: InventoryOptions): InventoryHost[] {
  const { value, lineAt, twice } = readYaml(content);
  if (Array.isArray(value))
    return value.map((item: unknown, index) => {
      const line = lineAt([index]);
      // Two hosts perhaps, with the mark of a list forgotten.
      if (twice.some(({ entry }) => entry === index))
        return { line, name: '', labels: {}, problem: 'it has a key that stands there twice' };
      if (!isRecord(item)) return { line, name: '', labels: {}, problem: 'it must hold keys and values' };
      const { labels, ...rest } = item;
      const host = fromFields(
        line,
        Object.entries(rest).map(([key, field]) => [key, scalarText(field)]),
      );
      if (isRecord(labels))
        host.labels = Object.fromEntries(Object.entries(labels).map(([key, field]) => [key, scalarText(field)]));
      else if (labels !== undefined && labels !== null) host.labels = parseLabelList(scalarText(labels));
      return host;
    });
  if (!isRecord(value)) throw invalid(1, 'it must hold a list of hosts, or the groups of Ansible');
  for (const { line, before } of twice.slice(0, maxNamedKeys))
    options.warn?.(
      `line ${line}: the key is in line ${before} too, and what that one holds is left out, as Ansible does`,
    );
  if (twice.length > maxNamedKeys)
    options.warn?.(`${twice.length - maxNamedKeys} more keys stand there twice, of which the last counts`);
  const inventory = new AnsibleInventory(options);
  const variables = isRecord(value._meta) ? value._meta.hostvars : undefined;
  if (isRecord(variables)) inventory.addTree(...treeOfList(value, variables, lineAt));
  else inventory.addTree(value, lineAt);
  return inventory.hosts();
}

type LineAt = (path: (string | number)[]) => number;

/**
 * Of the output of `ansible-inventory --list`, or of a script that Ansible takes for one, a tree: groups name their
 * hosts and children, and variables stand by themselves.
 */
function treeOfList(
  { _meta, ...groups }: Record<string, unknown>,
  variables: Record<string, unknown>,
  lineAt: LineAt,
): [Record<string, unknown>, LineAt] {
  const texts = (list: unknown): string[] => (Array.isArray(list) ? list.filter((one) => typeof one === 'string') : []);
  const keyed = (names: string[], valueOf: (name: string) => unknown) =>
    Object.fromEntries(names.map((name) => [name, valueOf(name)]));
  const tree = Object.fromEntries(
    Object.entries(groups).map(([name, group]): [string, unknown] => {
      // The oldest form has nothing but hosts.
      const { hosts, children, vars } = isRecord(group) ? group : { hosts: group };
      return [
        name,
        { hosts: keyed(texts(hosts), (host) => variables[host]), children: keyed(texts(children), () => null), vars },
      ];
    }),
  );
  const isTold = new Set(Object.values(groups).flatMap((group) => texts(isRecord(group) ? group.hosts : group)));
  const rest = Object.keys(variables).filter((host) => !isTold.has(host));
  const { all } = tree as { all?: { hosts: Record<string, unknown> } };
  if (rest.length > 0) tree.all = { ...all, hosts: { ...all?.hosts, ...keyed(rest, (host) => variables[host]) } };
  return [
    tree,
    (path) =>
      path[1] === 'hosts' && path[2] !== undefined ? lineAt(['_meta', 'hostvars', ...path.slice(2)]) : lineAt(path),
  ];
}

const maxNamedKeys = 20;

/** A key that its mapping has a second time: there the second one stands, and the first one. */
interface Twice {
  line: number;
  before: number;
  /** Of the document's list, where it is one. */
  entry: number;
}

/** The line in which a node of a document begins; 1 where that is not known. */
type LineOf = (node: unknown) => number;

/**
 * The value of a document, and where its keys stand. Of a key that stands there twice the last one counts, as for
 * Ansible.
 */
function readYaml(content: string): { value: unknown; lineAt: LineAt; twice: Twice[] } {
  const counter = new LineCounter();
  const lineOf: LineOf = (node) => {
    const range = (node as { range?: [number, number, number] | null } | undefined)?.range;
    return range ? counter.linePos(range[0]).line : 1;
  };
  try {
    // Ansible's own tags, such as !vault, are no errors. The library compares each key with all others, which takes
    // seconds for thousands of hosts.
    const document = parseDocument(content, {
      lineCounter: counter,
      prettyErrors: false,
      merge: true,
      logLevel: 'error',
      uniqueKeys: false,
    });
    const [error] = document.errors;
    if (error) throw refusalOf(error, counter.linePos(error.pos[0]).line);
    const { lines, twice } = keepLastKeys(document, lineOf);
    const lineAt: LineAt = (path) =>
      lines.get(document.getIn(path.slice(0, -1), true) ?? document.contents)?.get(String(path.at(-1))) ??
      lineOf(document.getIn(path, true));
    return { value: document.toJS({ maxAliasCount: 100 }), lineAt, twice };
  } catch (error) {
    if (error instanceof AppError) throw error;
    // Aliases without an end, or a depth that no stack can hold.
    throw invalid(undefined, 'no YAML that can be read');
  }
}

const refusalOf = ({ code }: YAMLParseError, line: number): AppError =>
  invalid(
    line,
    code === 'MULTIPLE_DOCS'
      ? 'a second document begins, and Ansible reads one: import each of them by itself'
      : `no YAML: ${code.toLowerCase().replaceAll('_', ' ')}`,
  );

/** Leaves the last one of each key in the mappings of a document. Returns the lines of their keys, by mapping. */
function keepLastKeys(
  document: Document.Parsed,
  lineOf: LineOf,
): { lines: Map<unknown, Map<string, number>>; twice: Twice[] } {
  const lines = new Map<unknown, Map<string, number>>();
  const twice: Twice[] = [];
  const { contents } = document;
  visit(document, {
    Map: (_, map, path) => {
      const entryOfMap = () =>
        isSeq(contents) ? contents.items.findIndex((item) => item === path[2] || item === map) : -1;
      const known = new Map<string, number>();
      const last = new Map<string, Pair>();
      for (const pair of map.items) {
        const { key } = pair;
        if (!isScalar(key)) throw invalid(lineOf(key), 'a key that is no text');
        const [name, line] = [String(key.value), lineOf(key)];
        const before = known.get(name);
        if (before !== undefined && name !== '<<') twice.push({ line, before, entry: entryOfMap() });
        known.set(name, line);
        last.set(name, pair);
      }
      map.items = map.items.filter(
        (pair) => isScalar(pair.key) && (pair.key.value === '<<' || last.get(String(pair.key.value)) === pair),
      );
      lines.set(map, known);
    },
  });
  return { lines, twice };
}

/** Ansible's INI format. Throws `inventory_invalid`. */
function parseIni(content: string, options: InventoryOptions): InventoryHost[] {
  const inventory = new AnsibleInventory(options);
  inventory.addIni(content);
  return inventory.hosts();
}
