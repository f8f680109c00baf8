import { AppError } from '@airdock/core/errors';
import { describe, expect, it } from 'vitest';
import { type InventoryFormat, parseInventory } from './inventory.js';

const refusal = (format: InventoryFormat, content: string): AppError => {
  try {
    parseInventory(format, content);
  } catch (error) {
    return error as AppError;
  }
  throw new Error('it was accepted');
};
const group = (...names: string[]) => Object.fromEntries(names.map((name) => [`ansible-group/${name}`, '']));

describe('CSV', () => {
  it('has a header with the names of the columns, in any order and spelling', () => {
    const content =
      '\uFEFFAddress, name ,host_key,labels,port\r\n10.0.0.1,node-1,"ssh-ed25519 AAAA, x",role=worker;site=b,\r\n\r\n10.0.0.2,node-2,,,2222\r\n';
    expect(parseInventory('csv', content)).toMatchObject([
      {
        line: 2,
        name: 'node-1',
        address: '10.0.0.1',
        hostKey: 'ssh-ed25519 AAAA, x',
        labels: { role: 'worker', site: 'b' },
        port: undefined,
        problem: undefined,
      },
      { line: 4, name: 'node-2', address: '10.0.0.2', labels: {}, port: 2222, problem: undefined },
    ]);
  });

  it('is refused as a whole when it is none, and by host when a host is wrong', () => {
    for (const content of ['', 'address,port\n1,2', 'name,colour\na,red', 'name,address\n"a,b\n'])
      expect(refusal('csv', content).code).toBe('inventory_invalid');
    expect(parseInventory('csv', 'name,port\n a b ,22\nnode,x')).toMatchObject([
      { line: 2, name: '', problem: expect.stringContaining('name') },
      { port: Number.NaN },
    ]);
    expect(
      refusal('csv', `name\n${Array.from({ length: 5001 }, (_, index) => `node-${index}`).join('\n')}`).message,
    ).toContain('5000');
  });
});

describe('YAML', () => {
  it('may be a list of hosts', () => {
    const content =
      '- name: node-1\n  address: 10.0.0.1\n  labels: {role: worker, ready: true}\n- {name: node-2, port: 2222, credential: site, colour: red}\n- text\n';
    expect(parseInventory('yaml', content)).toMatchObject([
      { line: 1, name: 'node-1', address: '10.0.0.1', labels: { role: 'worker', ready: 'true' }, problem: undefined },
      { line: 4, name: 'node-2', port: 2222, credential: 'site', problem: expect.stringContaining('known') },
      { line: 5, name: '', problem: expect.any(String) },
    ]);
  });

  it('may be the tree of Ansible, where the nearer group wins', () => {
    const content = `
all:
  vars: {ansible_user: root, ansible_port: 22}
  hosts:
    lone:
  children:
    prod:
      vars: {ansible_port: 2022, note: [a, b]}
      children:
        web:
          hosts:
            web[01:02]: {ansible_host: 10.0.0.1}
            web03:
              ansible_port: 3022
              airdock_labels: role=worker
`;
    expect(parseInventory('yaml', content)).toMatchObject([
      { line: 5, name: 'lone', user: 'root', port: 22, labels: {} },
      { line: 12, name: 'web01', address: '10.0.0.1', port: 2022, labels: group('prod', 'web') },
      { line: 12, name: 'web02' },
      { line: 13, name: 'web03', address: undefined, port: 3022, labels: { ...group('prod', 'web'), role: 'worker' } },
    ]);
  });

  it('bounds what aliases can make of a small text', () => {
    const bomb = [
      'a: &a {children: {x: }}',
      ...Array.from(
        { length: 12 },
        (_, index) =>
          `b${index}: &b${index} {children: {p: *${index ? `b${index - 1}` : 'a'}, q: *${index ? `b${index - 1}` : 'a'}}}`,
      ),
    ].join('\n');
    for (const content of [
      bomb,
      'a: &a\n  children:\n    b: *a\n',
      'a: *b',
      'a: [',
      'text',
      'a: 1',
      '? [a]\n: 1\n? [b]\n: 2',
      '['.repeat(100_000),
    ])
      expect(refusal('yaml', content).code).toBe('inventory_invalid');
  });
});

describe('a key that stands there twice', () => {
  it.each([
    [
      'of a host',
      'all:\n  hosts:\n    a: {ansible_host: x}\n    b:\n    a: {ansible_host: y}\n',
      [
        ['b', undefined, 4],
        ['a', 'y', 5],
      ],
      [5, 3],
    ],
    ['of a group', 'web:\n  hosts:\n    a:\nweb:\n  hosts:\n    b:\n', [['b', undefined, 6]], [4, 1]],
    [
      'of a variable',
      'web:\n  hosts:\n    a:\n      ansible_host: x\n      ansible_host: y\n',
      [['a', 'y', 3]],
      [5, 4],
    ],
    ['of hosts', 'web:\n  hosts:\n    a:\n  hosts:\n    b:\n', [['b', undefined, 5]], [4, 2]],
    ['in another spelling', 'web:\n  hosts: {a: , "a": {ansible_host: y}}\n', [['a', 'y', 2]], [2, 2]],
  ] as const)('%s is its last one, and that is said', (_, content, expected, [line, before]) => {
    const warnings: string[] = [];
    const hosts = parseInventory('yaml', content, { warn: (text) => warnings.push(text) });
    expect(hosts.map((host) => [host.name, host.address, host.line])).toEqual(expected);
    expect(warnings).toEqual([expect.stringMatching(`^line ${line}: the key is in line ${before} too`)]);
  });

  it('in a list of hosts is the problem of that host, which may be two', () => {
    const content =
      '- name: a\n- name: b\n  address: 10.0.0.1\n  name: c\n- {name: d, labels: {x: 1, x: 2}}\n- name: e\n';
    expect(parseInventory('yaml', content)).toMatchObject([
      { name: 'a' },
      { line: 2, problem: expect.stringContaining('twice') },
      { line: 5, name: '' },
      { name: 'e' },
    ]);
  });

  it('is counted where there are very many', () => {
    const warnings: string[] = [];
    parseInventory('yaml', `a:\n  hosts:\n${'    x:\n'.repeat(1_000)}`, { warn: (text) => warnings.push(text) });
    expect(warnings).toHaveLength(21);
    expect(warnings.at(-1)).toContain('979 more');
  });
});

it('takes one document, and says where another begins', () => {
  expect(refusal('yaml', 'a:\n  hosts: {x: }\n---\nb:\n  hosts: {y: }\n')).toMatchObject({
    details: { detail: expect.stringMatching(/^line [34]: a second document/) },
  });
  expect(refusal('yaml', '- name: a\n---\n- name: b\n').message).toContain('second document');
  expect(refusal('yaml', 'a:\n  hosts: {x: }\n---\n').message).toContain('second document');
  for (const one of ['---\na:\n  hosts: {x: }\n...\n', '%YAML 1.1\n---\n- name: x\n'])
    expect(parseInventory('yaml', one)).toMatchObject([{ name: 'x', problem: undefined }]);
});

it.each([
  ['ini', '{"_meta": {}}'],
  ['ini', '---\nall:\n'],
  ['csv', '[\n {"name": "x"}]'],
] as const)('says that JSON or YAML is not %s: %s', (format, content) =>
  expect(refusal(format, content).message).toContain('format yaml'),
);

describe("Ansible's INI", () => {
  it('has groups, their variables and children, and ranges', () => {
    const content = `
lone ansible_host=10.0.0.9  # a comment
[web]
web[08:10:2].site:2222 ansible_host="10.0.0.1" note='a b'
web11.site
[db:vars]
ansible_user=root
ansible_port = "2200"
[db]
db-[a:b]
web11.site
[prod:children]
web
db
`;
    expect(parseInventory('ini', content)).toMatchObject([
      { line: 2, name: 'lone', address: '10.0.0.9', labels: {} },
      { line: 4, name: 'web08.site', address: '10.0.0.1', port: 2222, labels: group('prod', 'web') },
      { line: 4, name: 'web10.site', port: 2222 },
      { line: 5, name: 'web11.site', port: 2200, user: 'root', labels: group('db', 'prod', 'web') },
      { line: 10, name: 'db-a', user: 'root', port: 2200, labels: group('db', 'prod') },
      { line: 10, name: 'db-b' },
    ]);
  });

  it('says what it does not understand, and where', () => {
    for (const [content, line] of [
      ['a b', 1],
      ['[x:vars]\nnothing here', 2],
      ['a x="1', 1],
      ['\nweb[1:99999]', 2],
      ['web[9:1]', 1],
      ['web[a:3]', 1],
      ['w[1:80][1:80]', 1],
      ['[x:children]\na b/c', 2],
      [Array.from({ length: 99 }, (_, index) => `[g${index}]\nweb[1:4900]`).join('\n'), 42],
    ] as const)
      expect(refusal('ini', content).details.line ?? `nowhere in ${content}`).toBe(line);
    expect(refusal('ini', '[a:children]\nb\n[b:children]\na\n').message).toContain('children of themselves');
    expect(
      parseInventory('ini', 'a ansible_connection=local\nb ansible_ssh_common_args="-o ProxyJump=x"'),
    ).toMatchObject([
      { problem: expect.stringContaining('ansible_connection') },
      { problem: expect.stringContaining('jumpHostId') },
    ]);
  });
});

describe('secrets', () => {
  it.each([
    ['csv', 'name,address,Sudo_Password\na,b,hunter2\nc,d,\n'],
    ['yaml', '- {name: a, password: hunter2}\n- {name: c}\n'],
    [
      'yaml',
      'all:\n  children:\n    x:\n      vars:\n        ansible_become_password: !vault |\n          hunter2\n      hosts: {a: }\n  hosts: {c: }\n',
    ],
    ['ini', 'a ansible_ssh_pass=hunter2\nc\n'],
    ['ini', '[x]\na\n[x:vars]\nansible_become_pass: hunter2\nansible_password=hunter2\n'],
    ['ini', 'ansible_password=hunter2\n'],
    ['ini', '[x:vars]\nhunter2\n'],
    ['csv', 'name,hunter2\na,b'],
    ['csv', 'name,address\na,"hunter2'],
    ['yaml', 'a: hunter2: x'],
  ] as const)('are refused and never repeated: %s %#', (format, content) => {
    let said: string;
    try {
      const hosts = parseInventory(format, content);
      expect(hosts.map(({ problem }) => problem !== undefined)).toEqual(hosts.map(({ name }) => name !== 'c'));
      said = JSON.stringify(hosts);
    } catch (error) {
      expect(error).toMatchObject({ code: 'inventory_invalid' });
      said = JSON.stringify([(error as AppError).message, (error as AppError).details]);
    }
    expect(said).not.toContain('hunter2');
  });
});
