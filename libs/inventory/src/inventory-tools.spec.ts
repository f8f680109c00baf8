/** Inventories as Ansible itself reads them, and tables as spreadsheets and shells write them. */
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { AppError } from '@airdock/core/errors';
import { findProgram, type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type InventoryFormat, parseInventory } from './inventory.js';

const run = promisify(execFile);
const refusal = (format: InventoryFormat, content: string): AppError => {
  try {
    parseInventory(format, content);
  } catch (error) {
    return error as AppError;
  }
  throw new Error('it was accepted');
};

const crowded = `[all-in-one]\nnode1 ansible_host=10.0.0.1\n\n${Array.from({ length: 150 }, (_, index) => `[g${index}:children]\nall-in-one\n`).join('\n')}`;

describe.skipIf(!findProgram('ansible-inventory'))('as ansible-inventory says', () => {
  let folder: TempDir;
  beforeAll(async () => {
    folder = await tempDir('ansible');
  });
  afterAll(() => folder?.remove());

  interface Seen {
    address: string | undefined;
    port: number | undefined;
    user: string | undefined;
    groups: string[];
  }
  async function list(content: string, suffix = 'ini', ...options: string[]): Promise<string> {
    const file = join(folder.path, `hosts.${suffix}`);
    await writeFile(file, content);
    const env = {
      ...process.env,
      HOME: folder.path,
      ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED: 'true',
      ANSIBLE_LOCALHOST_WARNING: 'false',
    };
    const { stdout } = await run('ansible-inventory', ['-i', file, '--list', ...options], { env, timeout: 60_000 });
    return stdout;
  }
  /** What Ansible makes of an inventory. */
  async function listed(content: string, suffix?: string): Promise<Map<string, Seen>> {
    const stdout = await list(content, suffix);
    const { _meta, ...groups } = JSON.parse(stdout) as {
      _meta: { hostvars: Record<string, Record<string, unknown>> };
    } & Record<string, { hosts?: string[]; children?: string[] }>;
    const members = (group: string): string[] => [
      ...(groups[group]?.hosts ?? []),
      ...(groups[group]?.children ?? []).flatMap(members),
    ];
    const hosts = new Map<string, Seen>();
    const text = (value: unknown) => (value === undefined ? undefined : String(value as string | number));
    for (const host of members('all')) {
      const vars = _meta.hostvars[host] ?? {};
      hosts.set(host, {
        address: text(vars.ansible_host),
        port: vars.ansible_port === undefined ? undefined : Number(vars.ansible_port),
        user: text(vars.ansible_user),
        groups: Object.keys(groups).filter(
          (group) => !['all', 'ungrouped'].includes(group) && members(group).includes(host),
        ),
      });
    }
    return hosts;
  }

  it.each([
    [
      'comments behind variables',
      '[web:vars]\nansible_user = root ; the admin\nansible_port=22 # default\n[web]\nw1 ansible_host=10.0.0.1\n',
    ],
    [
      'quoted values with comments',
      '[web:vars]\nansible_user = "ro#ot" # no\nansible_port = "2200"\n[web]\nw1\nw2 ansible_user=\'x y\' ansible_port=22\n',
    ],
    [
      'variables of any name',
      '[nodes]\nn1 ansible_host=10.0.0.1 node-role=worker kubernetes.io/role=x 9=y\n[nodes:vars]\nmy-var = 1\na.b/c=2\n',
    ],
    ['IPv6 addresses as names', '[v6]\n[2001:db8::1]:2222 ansible_user=root\n2001:db8::2\nfe80::1\n'],
    [
      'comments in the middle',
      '[g] # a group\nh1 ansible_user=a#b\nh2 ansible_host=10.0.0.2 # x ansible_port=1\n# none\n; none\n',
    ],
    [
      'quotes and backslashes',
      '[g]\nh1 ansible_user="a\\"b"\nh2 ansible_user=\'a b\'\nh3 ansible_user="a\\nb"\nh4 ansible_user=a\\ b\n',
    ],
    ['ranges and ports', '[g]\nweb[08:12:2].site:2222 ansible_user=x\ndb-[a:c]\nnode[1:3]\n'],
    ['names of groups with odd characters', '[my-group.1]\nh1\n[über]\nh2\n[a/b:children]\nmy-group.1\n'],
    [
      'variables of hosts in no group',
      'h1\n[ungrouped]\nh2\n[web]\nh3\nh4 ansible_port=24\n[ungrouped:vars]\nansible_user=nobody\nansible_port=23\n',
    ],
    [
      'variables of hosts in no group, of which one is in a group too',
      '[ungrouped]\nh1\nh2\n[web]\nh2\n[ungrouped:vars]\nansible_user=nobody\n',
    ],
    [
      'variables of all, and of hosts in no group',
      'h1\n[all:vars]\nansible_user=root\nansible_port=22\n[ungrouped:vars]\nansible_user=nobody\n[web]\nh2\n',
    ],
    ['a host in very many groups', crowded],
    [
      'groups that are named twice',
      '[a]\nh1\n[b]\nh1 ansible_port=1\n[a]\nh2\n[a:vars]\nansible_user=x\n[b:vars]\nansible_user=y\n',
    ],
  ])('%s', async (_what, content) => {
    const found = parseInventory('ini', content);
    const expected = await listed(content);
    expect(expected.size).toBeGreaterThan(0);
    const nameOf = (name: string) => name.replaceAll(':', '-');
    expect(found.map(({ name }) => name).sort()).toEqual([...expected.keys()].map(nameOf).sort());
    for (const [name, seen] of expected) {
      const host = found.find((one) => one.name === nameOf(name));
      const { groups, ...own } = seen;
      expect({ port: host?.port, user: host?.user }).toEqual({ port: own.port, user: own.user });
      expect(host?.address).toBe(own.address ?? (name.includes(':') ? name : undefined));
      expect(Object.keys(host?.labels ?? {}).length + (host?.groupsWithoutLabel ?? 0)).toBe(groups.length);
      expect(host?.problem).toBeUndefined();
    }
  });

  it.each([
    ['a host twice', 'all:\n  hosts:\n    h1: {ansible_host: 10.0.0.1}\n    h2:\n    h1: {ansible_host: 10.0.0.2}\n'],
    ['a group twice', 'web:\n  hosts:\n    h1:\nweb:\n  hosts:\n    h2:\ndb:\n  hosts:\n    h2:\n'],
    [
      'a variable twice',
      'all:\n  hosts:\n    h1: {ansible_host: a, "ansible_host": b, ansible_port: 1, ansible_port: 2}\n',
    ],
    ['variables of a group twice', 'all:\n  vars: {ansible_user: a}\n  hosts: {h1: }\n  vars: {ansible_port: 22}\n'],
    ['a document that ends', '---\nall:\n  hosts:\n    h1:\n...\n'],
  ])('of YAML with %s', async (_what, content) => {
    const expected = await listed(content, 'yml');
    const found = parseInventory('yaml', content);
    expect(new Map(found.map(({ name, address, port, user }) => [name, { address, port, user }]))).toEqual(
      new Map([...expected].map(([name, { address, port, user }]) => [name, { address, port, user }])),
    );
    for (const { name, labels } of found)
      expect(Object.keys(labels).sort()).toEqual(
        expected
          .get(name)
          ?.groups.map((group) => `ansible-group/${group}`)
          .sort(),
      );
  });

  it.each(['a:\n  hosts: {x: }\n---\nb:\n  hosts: {y: }\n', 'a:\n  hosts: {x: }\n---\n'])(
    'of YAML with several documents: none %#',
    async (content) => {
      await expect(list(content, 'yml')).rejects.toThrow('another document');
      expect(refusal('yaml', content).message).toContain('second document');
    },
  );

  it.each([
    [
      'INI',
      'ini',
      '[web]\nw[1:3] ansible_host=10.0.0.1\n2001:db8::2\n[db]\nd1 ansible_port=2222\nw1\n[site:children]\nweb\ndb\n[site:vars]\nansible_user=root\n[none]\n',
    ],
    ['YAML', 'yml', 'all:\n  hosts: {lone: {ansible_host: x}}\n  children: {a: {children: {b: {hosts: {h1: }}}}}\n'],
    ['nothing but names', 'ini', 'a\nb\n'],
  ])('of what it writes itself, in JSON and YAML: %s', async (_what, suffix, content) => {
    const seen = (found: ReturnType<typeof parseInventory>) =>
      found.map((host) => ({ ...host, line: 0 })).sort((a, b) => a.name.localeCompare(b.name));
    const own = seen(parseInventory(suffix === 'ini' ? 'ini' : 'yaml', content));
    expect(own.length).toBeGreaterThan(0);
    expect(seen(parseInventory('yaml', await list(content, suffix)))).toEqual(own);
    expect(seen(parseInventory('yaml', await list(content, suffix, '--yaml')))).toEqual(own);
    expect(seen(parseInventory('yaml', await list(content, suffix, '--export')))).toEqual(own);
  });

  it('of what it writes of secrets: the hosts are refused, by the line of the secret', async () => {
    const text = await list('[web]\nh1 ansible_password=hunter2\nh2\n');
    const line = text.split('\n').findIndex((one) => one.includes('hunter2')) + 1;
    const hosts = parseInventory('yaml', text);
    expect(hosts).toMatchObject([
      { name: 'h1', problem: expect.stringContaining(`in line ${line}`) },
      { name: 'h2', problem: undefined },
    ]);
    expect(JSON.stringify(hosts)).not.toContain('hunter2');
  });
});

it.each([
  ['hosts without a group', '{"_meta": {"hostvars": {"h1": {"ansible_host": "x"}}}}'],
  ['a group that is a list', '{"_meta": {"hostvars": {"h1": {"ansible_host": "x"}}}, "web": ["h1"]}'],
  ['a host without variables', '{"_meta": {"hostvars": {}}, "web": {"hosts": ["h1"], "vars": {"ansible_host": "x"}}}'],
])("reads a script's list: %s", (_, content) =>
  expect(parseInventory('yaml', content)).toMatchObject([{ name: 'h1', address: 'x', problem: undefined }]),
);

describe('groups that become labels', () => {
  const labelsOf = (groupLabels?: string[]) =>
    Object.keys(parseInventory('ini', crowded, { groupLabels })[0]?.labels ?? {});

  it('are those that are named, also by a part of the name', () => {
    expect(labelsOf(['all-in-one'])).toEqual(['ansible-group/all-in-one']);
    expect(labelsOf(['g14*']).sort()).toEqual(
      ['g14', ...Array.from({ length: 10 }, (_, index) => `g14${index}`)].map((name) => `ansible-group/${name}`).sort(),
    );
    expect(labelsOf(['*-in-*', 'g1'])).toHaveLength(2);
    expect(labelsOf(['nothing*', '*x*y*z*'])).toEqual([]);
    expect(labelsOf([])).toEqual([]);
  });

  it('are the nearest where there is no room for all, which is said and no error', () => {
    const [host] = parseInventory('ini', crowded);
    expect(host).toMatchObject({ name: 'node1', problem: undefined, groupsWithoutLabel: 151 - 64 });
    expect(Object.keys(host?.labels ?? {})).toHaveLength(64);
    expect(host?.labels).toHaveProperty('ansible-group/all-in-one');
  });

  it('cost no more than their bound, however they are nested', () => {
    const groups = Array.from({ length: 1_900 }, (_, index) => `[g${index}:children]\nnodes\n`).join('');
    const started = performance.now();
    expect(refusal('ini', `[nodes]\nweb[1:4900]\n${groups}`).message).toContain('more than');
    expect(labelsOf(['*a*'.repeat(50)])).toEqual([]);
    expect(performance.now() - started).toBeLessThan(20_000);
  });
});

describe('one odd line among many', () => {
  const many = Array.from({ length: 200 }, (_, index) => `node${index}`).join('\n');

  it.each([
    ['ini', `[g]\n${many}\nodd one=1 two\n`, 202, 200],
    ['ini', `[g]\n${many}\nweb[9:1]\nx "unclosed\n`, 202, 200],
    ['ini', `[g]\n${many}\n[g:vars]\nno variable\n[]\nnot-known-where\n[h]\nlast\n`, 203, 201],
    ['ini', `[g]\n${many}\n[h\nnot-one-of-g\n`, 202, 200],
    ['ini', `[g]\n${many}\n[h] x\nnot-one-of-g\n[i]\nlast\n`, 202, 201],
    [
      'yaml',
      `a:\n  hosts:\n${many.replaceAll(/^/gm, '    ').replaceAll(/$/gm, ':')}\nb:\n  hosts: [x, y]\nc: [z]\nd:\n  hosts:\n    last:\n`,
      204,
      201,
    ],
    ['csv', `name,address\n${many.replaceAll('\n', ',\n')},\n"x"y,z\nlast,\n`, 202, 201],
    ['yaml', `all:\n  hosts:\n${many.replaceAll(/^/gm, '    ').replaceAll(/$/gm, ':')}\n    web[9:1]:\n`, 203, 200],
  ] as const)('is refused by itself with partial: %s %#', (format, content, line, count) => {
    const found = parseInventory(format, content, { partial: true });
    expect(found.filter(({ problem }) => problem === undefined)).toHaveLength(count);
    const odd = found.filter(({ problem }) => problem !== undefined);
    expect(odd.length).toBeGreaterThan(0);
    expect(odd[0]).toMatchObject({ line, name: '' });
    expect(refusal(format, content).code).toBe('inventory_invalid');
  });

  it('is one of at most as many as hosts may be', () => {
    expect(() => parseInventory('ini', 'a b\n'.repeat(6_000), { partial: true })).toThrow('variables');
  });
});

describe('tables of spreadsheets', () => {
  const expected = [{ name: 'n1', address: '10.0.0.1', port: 22, problem: undefined }];
  const utf16 = (text: string, readAs: 'latin1' | 'utf8') => Buffer.from(`\uFEFF${text}`, 'utf16le').toString(readAs);
  const table = 'name,address,port\r\nn1,10.0.0.1,22\r\n';

  it.each([
    ['empty columns at the end', 'name,address,port,,\nn1,10.0.0.1,22,,\n'],
    ['more empty fields than columns', 'name,address,port\nn1,10.0.0.1,22,,,\n'],
    ['fewer fields than columns', 'name,address,port,user,labels\nn1,10.0.0.1,22\n'],
    ['lines with empty fields only', 'name,address,port\n,,\nn1,10.0.0.1,22\n,,\n'],
    ['semicolons', 'name;address;port\nn1;10.0.0.1;22\n'],
    ['tabs', 'name\taddress\tport\r\nn1\t10.0.0.1\t22\r\n'],
    ['quoted names and semicolons', '"name";"address";"port"\n"n1";"10.0.0.1";"22"\n'],
    ['what tells Excel the delimiter', 'sep=;\r\nname;address;port\r\nn1;10.0.0.1;22\r\n'],
    ['a byte order mark', `\uFEFF${table}`],
    ['a mark and a delimiter', `\uFEFFsep=;\r\nname;address;port\r\nn1;10.0.0.1;22\r\n`],
    ['old ends of lines', 'name,address,port\rn1,10.0.0.1,22\r'],
    ['UTF-16 that was read as bytes', utf16(table, 'latin1')],
    ['UTF-16 that was read as UTF-8', utf16(table, 'utf8')],
  ])('with %s', (_what, content) => {
    expect(parseInventory('csv', content)).toMatchObject(expected);
    expect(parseInventory('csv', content)).toHaveLength(1);
  });

  it('with something in a column without a name: that host is refused', () => {
    expect(parseInventory('csv', 'name,address,\nn1,10.0.0.1,x\nn2,10.0.0.2,\n')).toMatchObject([
      { problem: 'column 3 has no name; quote what has the separator of the columns in it' },
      { problem: undefined },
    ]);
    expect(parseInventory('csv', 'name,address\na,b,c\n')).toMatchObject([
      { problem: 'column 3 has no name; quote what has the separator of the columns in it' },
    ]);
  });
});
