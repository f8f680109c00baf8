import { isIPv6 } from 'node:net';
import { AppError } from '@airdock/core/errors';
import {
  groupLabel,
  hostName,
  type InventoryHost,
  type InventoryOptions,
  invalid,
  isRecord,
  isSecret,
  maxHosts,
  parseLabelList,
  portNumber,
  scalarText,
  secretProblem,
} from './inventory-host.js';

interface Variable {
  text: string;
  line: number;
}
type Variables = Map<string, Variable>;

interface Group {
  hosts: Set<string>;
  children: Set<string>;
  variables: Variables;
}

const maxDepth = 20;
const maxGroups = 2000;
const maxVisits = 20_000;
// Also bounds the work: a few ranges in many groups are a small text.
const maxMemberships = 100_000;
/** Of hosts in groups and in the groups above them. */
const maxInherited = 2_000_000;
/** As many as a host may have. */
const maxLabels = 64;
/**
 * What was to be a section and is none: not closed, or with something behind it, and neither a range nor an address.
 * Its hosts are not those of the section before.
 */
const lostSection = /^\[(?!(?:[0-9a-f]*:){2})[^\]]*(?:$|\]\s)|^\[.*\]$/i;
const groupName = /^[^:\]\s]{1,200}$/;

/** The variables that Airdock takes. Others are for Ansible's playbooks, and left alone, but for secrets. */
const taken = new Set([
  ...[
    'ansible_host',
    'ansible_ssh_host',
    'ansible_port',
    'ansible_ssh_port',
    'ansible_user',
    'ansible_ssh_user',
    'ansible_connection',
  ],
  ...[
    'ansible_ssh_common_args',
    'ansible_ssh_extra_args',
    'ansible_ssh_args',
    'airdock_credential',
    'airdock_host_key',
    'airdock_labels',
  ],
]);
const isTaken = (key: string): boolean => taken.has(key) || isSecret(key);

/**
 * The groups and hosts of an Ansible inventory, in the INI and in the YAML format:
 * https://docs.ansible.com/ansible/latest/inventory_guide/intro_inventory.html
 */
export class AnsibleInventory {
  private readonly groups = new Map<string, Group>([['all', newGroup()]]);
  private memberships = 0;
  private readonly found = new Map<string, { line: number; variables: Variables }>();
  private readonly odd: InventoryHost[] = [];

  constructor(private readonly options: InventoryOptions = {}) {}

  /** Throws `inventory_invalid`; with `partial` a line that cannot be read is a host that cannot be used. */
  addIni(content: string): void {
    let group = 'all';
    let kind = 'hosts';
    let oddSection: number | undefined;
    for (const [index, raw] of content
      .replace(/^\uFEFF/, '')
      .split(/\r\n|\n|\r/)
      .entries()) {
      const line = index + 1;
      const text = raw.trim();
      if (text === '' || text.startsWith('#') || text.startsWith(';')) continue;
      this.tolerate(line, () => {
        const section = /^\[([^:\]\s]{1,200})(?::(vars|children|hosts))?\]\s*(?:[#;].*)?$/.exec(text);
        if (section) {
          oddSection = undefined;
          group = section[1] ?? 'all';
          kind = section[2] ?? 'hosts';
          this.group(group);
        } else if (lostSection.test(text)) {
          oddSection = line;
          throw invalid(line, 'no name of a section');
        } else if (oddSection !== undefined) throw invalid(line, `the section in line ${oddSection} cannot be read`);
        else if (kind === 'vars') {
          const at = text.indexOf('=');
          const key = text.slice(0, Math.max(0, at)).trim();
          if (key === '') throw invalid(line, 'no variable: write name=value');
          if (isTaken(key)) this.group(group).variables.set(key, { text: literal(text.slice(at + 1).trim()), line });
        } else {
          const [pattern = '', ...rest] = words(text, line);
          if (kind === 'children') this.addChild(group, rest.length === 0 ? pattern : '', line);
          else this.addHosts(group, pattern, variablesOf(rest, line), line);
        }
      });
    }
  }

  /** What cannot be read there is named, and the rest goes on, where that is wanted. */
  private tolerate(line: number, read: () => void): void {
    try {
      read();
    } catch (error) {
      if (!this.options.partial || !(error instanceof AppError) || this.odd.length >= maxHosts) throw error;
      this.odd.push({ line, name: '', labels: {}, problem: String(error.details.detail).replace(/^line \d+: /, '') });
    }
  }

  /** Throws `inventory_invalid`. `lineAt` tells where a key stands. */
  addTree(tree: Record<string, unknown>, lineAt: (path: string[]) => number): void {
    // An alias can make a small text a large tree, or one without an end.
    let visits = 0;
    const refuse = (line: number, what: string) =>
      this.tolerate(line, () => {
        throw invalid(line, what);
      });
    const visit = (name: string, value: unknown, path: string[]): void => {
      if (++visits > maxVisits || path.length > 2 * maxDepth)
        throw invalid(undefined, `groups more than ${maxDepth} deep, or more than ${maxVisits} of them`);
      const group = this.group(name);
      if (value === null || value === undefined) return;
      if (!isRecord(value)) return refuse(lineAt(path), 'a group must hold hosts, vars or children');
      const part = (key: string): [string, unknown][] => {
        const found = value[key];
        if (found === null || found === undefined) return [];
        if (isRecord(found)) return Object.entries(found);
        refuse(lineAt([...path, key]), `${key} must hold keys and values`);
        return [];
      };
      // Only the lines of secrets are told, and finding one takes time.
      const variablesIn = (entries: [string, unknown][], at: string[]): [string, Variable][] =>
        entries
          .filter(([key]) => isTaken(key))
          .map(([key, found]) => [key, { text: scalarText(found), line: isSecret(key) ? lineAt([...at, key]) : 0 }]);
      for (const [key, variable] of variablesIn(part('vars'), [...path, 'vars'])) group.variables.set(key, variable);
      for (const [pattern, variables] of part('hosts')) {
        const at = [...path, 'hosts', pattern];
        this.tolerate(lineAt(at), () =>
          this.addHosts(
            name,
            pattern,
            new Map(variablesIn(isRecord(variables) ? Object.entries(variables) : [], at)),
            lineAt(at),
          ),
        );
      }
      for (const [child, found] of part('children')) {
        this.addChild(name, child, lineAt([...path, 'children', child]));
        visit(child, found, [...path, 'children', child]);
      }
    };
    for (const [name, value] of Object.entries(tree)) visit(name, value, [name]);
  }

  /** All hosts, in the order of the file. Throws `inventory_invalid` when groups are their own children. */
  hosts(): InventoryHost[] {
    const parents = new Map<string, string[]>();
    for (const [name, { children }] of this.groups)
      for (const child of children) parents.set(child, [...(parents.get(child) ?? []), name]);
    const depths = new Map<string, number>();
    const depthOf = (name: string, below: number): number => {
      if (below > maxDepth) throw invalid(undefined, `groups more than ${maxDepth} deep, or children of themselves`);
      const known = depths.get(name);
      if (known !== undefined) return known;
      const depth =
        name === 'all' ? 0 : 1 + Math.max(0, ...(parents.get(name) ?? []).map((parent) => depthOf(parent, below + 1)));
      depths.set(name, depth);
      return depth;
    };
    for (const name of this.groups.keys()) depthOf(name, 0);
    const direct = new Map<string, string[]>();
    for (const [name, { hosts }] of this.groups) {
      for (const host of hosts) {
        const known = direct.get(host);
        if (known) known.push(name);
        else direct.set(host, [name]);
      }
    }
    let inherited = 0;
    const isWanted = wantedGroups(this.options.groupLabels);
    const hosts = [...this.found].map(([name, { line, variables }]) => {
      const groups = new Set(['all']);
      const add = (group: string): void => {
        if (group !== 'all' && groups.has(group)) return;
        groups.add(group);
        if (++inherited > maxInherited) throw invalid(line, `more than ${maxInherited} times a host in a group`);
        for (const parent of parents.get(group) ?? []) add(parent);
      };
      for (const group of direct.get(name) ?? []) if (group !== 'ungrouped') add(group);
      // Whatever section it stands in: who is in no other group is in this one.
      if (groups.size === 1) groups.add('ungrouped');
      // The nearer group wins, and the host over all.
      const ordered = [...groups].sort((a, b) => (depths.get(a) ?? 0) - (depths.get(b) ?? 0) || (a < b ? -1 : 1));
      const all: Variables = new Map([
        ...ordered.flatMap((group) => [...(this.groups.get(group)?.variables ?? [])]),
        ...variables,
      ]);
      return toHost(name, line, all, ordered, isWanted);
    });
    return [...hosts, ...this.odd];
  }

  private group(name: string): Group {
    const group = this.groups.get(name) ?? newGroup();
    this.groups.set(name, group);
    if (this.groups.size > maxGroups) throw invalid(undefined, `more than ${maxGroups} groups`);
    return group;
  }

  private addChild(parent: string, child: string, line: number): void {
    if (!groupName.test(child)) throw invalid(line, 'no name of a group');
    this.group(child);
    this.group(parent).children.add(child);
  }

  private addHosts(group: string, pattern: string, variables: Variables, line: number): void {
    const { range, port } = splitPort(pattern);
    for (const name of expand(range, line)) {
      if (++this.memberships > maxMemberships) throw invalid(line, `more than ${maxMemberships} hosts in groups`);
      const host = this.found.get(name) ?? { line, variables: new Map() };
      if (port) host.variables.set('ansible_port', { text: port, line });
      for (const [key, value] of variables) host.variables.set(key, value);
      this.found.set(name, host);
      this.group(group).hosts.add(name);
      if (this.found.size > maxHosts) throw invalid(line, `more than ${maxHosts} hosts`);
    }
  }
}

/** Which groups become labels, by names that may have `*` in them; all of them where nothing is said. */
function wantedGroups(patterns: readonly string[] = ['*']): (group: string) => boolean {
  const known = new Map<string, boolean>();
  // `*` as the only one that is not literal, and one after the other no more than one: linear in what it is held
  // against.
  const parts = patterns.map((pattern) => pattern.split('*'));
  const matches = (group: string, [first = '', ...rest]: string[]): boolean => {
    if (rest.length === 0) return group === first;
    if (!group.startsWith(first)) return false;
    let at = first.length;
    const last = rest.pop() ?? '';
    for (const part of rest) {
      const found = group.indexOf(part, at);
      if (found < 0) return false;
      at = found + part.length;
    }
    return group.length - last.length >= at && group.endsWith(last);
  };
  return (group) => {
    const seen = known.get(group) ?? parts.some((one) => matches(group, one));
    known.set(group, seen);
    return seen;
  };
}

/**
 * As Ansible reads a value: numbers and quoted texts are those of Python, which a comment may follow; everything else
 * is what stands there, with what looks like a comment.
 */
function literal(text: string): string {
  const [, quoted, , whole] = /^((["'])((?:(?!\2)[^\\])*)\2|[+-]?\d{1,20})\s*(?:#.*)?$/.exec(text) ?? [];
  return whole ?? quoted ?? text;
}

const newGroup = (): Group => ({ hosts: new Set(), children: new Set(), variables: new Map() });

function toHost(
  name: string,
  line: number,
  variables: Variables,
  groups: string[],
  isWanted: (group: string) => boolean,
): InventoryHost {
  const first = (...keys: string[]): string | undefined =>
    keys.map((key) => variables.get(key)?.text).find((text) => text !== undefined && text !== '');
  const secrets = [...variables].flatMap(([key, variable]) =>
    variable.text === '' ? [] : (secretProblem(key, variable.line) ?? []),
  );
  const isProxied = ['ansible_ssh_common_args', 'ansible_ssh_extra_args', 'ansible_ssh_args'].some((key) =>
    /Proxy(?:Jump|Command)|-J/.test(first(key) ?? ''),
  );
  const connection = first('ansible_connection') ?? 'ssh';
  const port = first('ansible_port', 'ansible_ssh_port');
  const problems = [
    ...secrets,
    ...(hostName(nameOf(name)) ? [] : ['this is no name of a host']),
    ...(['ssh', 'smart', 'paramiko'].includes(connection) ? [] : ['ansible_connection is not ssh']),
    ...(port !== undefined && Number.isNaN(portNumber(port)) ? ['its port is no number'] : []),
    ...(isProxied
      ? ['its SSH arguments ask for a proxy: take them out, and give the jump host as defaults.jumpHostId']
      : []),
  ];
  const own = parseLabelList(first('airdock_labels') ?? '');
  const wanted = groups
    .filter((group) => group !== 'all' && group !== 'ungrouped' && isWanted(group))
    .map((group) => `${groupLabel}${labelName(group)}`);
  // The nearest, which are last, where there is not room for all.
  const all = [...new Set(wanted)];
  const kept = all.slice(Math.max(0, all.length - Math.max(0, maxLabels - Object.keys(own).length)));
  return {
    line,
    name: hostName(nameOf(name)),
    address: first('ansible_host', 'ansible_ssh_host') ?? (isIPv6(name) ? name : undefined),
    port: port === undefined ? undefined : portNumber(port),
    user: first('ansible_user', 'ansible_ssh_user'),
    credential: first('airdock_credential'),
    hostKey: first('airdock_host_key'),
    labels: { ...(Object.fromEntries(kept.map((label) => [label, ''])) as Record<string, string>), ...own },
    groupsWithoutLabel: all.length - kept.length,
    problem: problems[0],
  };
}

/** IPv6 addresses name hosts too: with `-` in place of `:` they are names here. */
const nameOf = (name: string): string =>
  isIPv6(name) ? name.replaceAll(':', '-').replace(/^-+/, '').replace(/-+$/, '') : name;

/** A group's name as that of a label, which begins and ends with a letter or digit. */
const labelName = (group: string): string =>
  group
    .replaceAll(/[^A-Za-z0-9_.-]/g, '-')
    .replace(/^[_.-]+/, '')
    .slice(0, 63)
    .replace(/[_.-]+$/, '') || 'group';

/** `web[01:03]` as its three names; `[a:c]` and a step as in `[1:9:2]` are ranges too. */
function expand(pattern: string, line: number): string[] {
  let names = [''];
  for (const part of pattern.split(/(\[[^[\]]*\])/)) {
    const options = part.startsWith('[') ? rangeOf(part.slice(1, -1), line) : [part];
    if (names.length * options.length > maxHosts) throw invalid(line, `more than ${maxHosts} hosts`);
    names = names.flatMap((name) => options.map((option) => name + option));
  }
  return names;
}

function rangeOf(text: string, line: number): string[] {
  const [, from = '', to = '', step = '1'] = /^(\d{1,9}|[A-Za-z]):(\d{1,9}|[A-Za-z])(?::(\d{1,5}))?$/.exec(text) ?? [];
  const isNumber = /^\d+$/.test(from);
  const value = (end: string) => (isNumber ? Number(end) : end.charCodeAt(0));
  const count = Math.floor((value(to) - value(from)) / Number(step)) + 1;
  if (from === '' || isNumber !== /^\d+$/.test(to) || !(count >= 1) || Number(step) < 1)
    throw invalid(line, 'no range: write it as [01:10] or [a:f]');
  if (count > maxHosts) throw invalid(line, `more than ${maxHosts} hosts`);
  return Array.from({ length: count }, (_, index) => {
    const at = value(from) + index * Number(step);
    return isNumber ? String(at).padStart(from.startsWith('0') ? from.length : 0, '0') : String.fromCharCode(at);
  });
}

/** `name:22`; the colons of ranges and of IPv6 addresses are none of ports. */
function splitPort(pattern: string): { range: string; port?: string } {
  const [, address = '', own] = /^\[([0-9A-Fa-f:.]{2,45})\](?::(\d{1,5}))?$/.exec(pattern) ?? [];
  if (isIPv6(address)) return { range: address, ...(own === undefined ? {} : { port: own }) };
  if (isIPv6(pattern)) return { range: pattern };
  const rest = pattern.slice(pattern.lastIndexOf(']') + 1);
  const port = /^[^:]*:(\d{1,5})$/.exec(rest)?.[1];
  return port === undefined ? { range: pattern } : { range: pattern.slice(0, -port.length - 1), port };
}

function variablesOf(pairs: string[], line: number): Variables {
  const variables = new Map(
    pairs.map((pair): [string, Variable] => {
      const at = pair.indexOf('=');
      if (at < 1) throw invalid(line, 'after the name of a host come variables: name=value');
      return [pair.slice(0, at), { text: literal(pair.slice(at + 1)), line }];
    }),
  );
  for (const key of variables.keys()) if (!isTaken(key)) variables.delete(key);
  return variables;
}

/**
 * Splits as Python's shlex does: quotes hold a word together, `#` outside of them begins a comment, a backslash in
 * double quotes is one unless it stands before a quote or another.
 */
function words(text: string, line: number): string[] {
  const found: string[] = [];
  let word: string | undefined;
  let quote = '';
  for (let index = 0; index < text.length; index++) {
    const char = text.charAt(index);
    if (quote) {
      if (char === quote) quote = '';
      else word += char === '\\' && quote === '"' && /["\\]/.test(text.charAt(index + 1)) ? text.charAt(++index) : char;
    } else if (char === '"' || char === "'") {
      quote = char;
      word ??= '';
    } else if (/\s/.test(char)) {
      if (word !== undefined) found.push(word);
      word = undefined;
    } else if (char === '#') break;
    else word = (word ?? '') + (char === '\\' ? text.charAt(++index) : char);
  }
  if (quote) throw invalid(line, 'a quote is not closed');
  if (word !== undefined) found.push(word);
  return found;
}
