/** One list of hosts, written in each form: all of them must say the same of it. */
import type { AppError } from '@airdock/core/errors';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type InventoryOptions, parseInventory } from './inventory.js';
import { isSecret, parseLabelList } from './inventory-host.js';
import { readInventory } from './read-inventory.js';

const word = fc.stringMatching(/^[a-z][a-z0-9]{0,8}$/);
const host = fc.record({
  name: fc.stringMatching(/^[a-z][a-z0-9]{0,8}([.-][a-z0-9]{1,5})?$/),
  address: fc.option(fc.ipV4(), { nil: undefined }),
  port: fc.option(fc.integer({ min: 1, max: 65_535 }), { nil: undefined }),
  user: fc.option(word, { nil: undefined }),
  labels: fc.dictionary(word, word, { maxKeys: 3 }),
});
const hosts = fc.uniqueArray(host, { selector: ({ name }) => name, minLength: 1, maxLength: 8 });
type Host = typeof host extends fc.Arbitrary<infer T> ? T : never;

const labelText = ({ labels }: Host) =>
  Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(';');
/** What is the same in each form. */
const plain = (list: readonly Host[]) =>
  list.map(({ name, address, port, user, labels }) => ({ name, address, port, user, labels: { ...labels } }));
const read = (format: 'csv' | 'yaml' | 'ini', content: string, options?: InventoryOptions) => {
  const found = parseInventory(format, content, options);
  expect(found.map(({ problem }) => problem)).toEqual(found.map(() => undefined));
  return plain(found as Host[]);
};
const quoted = (text: string | number | undefined) => `"${String(text ?? '').replaceAll('"', '""')}"`;

/** As variables of Ansible. */
const variablesOf = (one: Host): [string, string | number][] =>
  (
    [
      ['ansible_host', one.address],
      ['ansible_port', one.port],
      ['ansible_user', one.user],
      ['airdock_labels', labelText(one) || undefined],
    ] as const
  ).flatMap(([key, value]) => (value === undefined ? [] : [[key, value]]));

const writers: [string, (list: readonly Host[]) => ReturnType<typeof read>][] = [
  ...([',', ';', '\t', '|'] as const).map((delimiter): (typeof writers)[number] => [
    `CSV with ${JSON.stringify(delimiter)}`,
    (list) => {
      const rows = list.map((one) => [one.name, one.address, one.port, one.user, labelText(one)].map(quoted));
      return read(
        'csv',
        [['name', 'address', 'port', 'user', 'labels'], ...rows].map((row) => row.join(delimiter)).join('\r\n'),
      );
    },
  ]),
  ['a list in YAML', (list) => read('yaml', JSON.stringify(list))],
  [
    'a list in YAML with labels as text',
    (list) => read('yaml', JSON.stringify(list.map((one) => ({ ...one, labels: labelText(one) })))),
  ],
  [
    "Ansible's tree",
    (list) =>
      read(
        'yaml',
        JSON.stringify({
          all: { hosts: Object.fromEntries(list.map((one) => [one.name, Object.fromEntries(variablesOf(one))])) },
        }),
      ),
  ],
  [
    'what ansible-inventory --list makes of it',
    (list) =>
      read(
        'yaml',
        JSON.stringify({
          _meta: { hostvars: Object.fromEntries(list.map((one) => [one.name, Object.fromEntries(variablesOf(one))])) },
          all: { children: ['ungrouped'] },
          ungrouped: { hosts: list.map(({ name }) => name) },
        }),
      ),
  ],
  [
    "Ansible's INI",
    (list) =>
      read(
        'ini',
        list
          .map((one) =>
            [one.name, ...variablesOf(one).map(([key, value]) => `${key}=${JSON.stringify(value)}`)].join(' '),
          )
          .join('\n'),
      ),
  ],
];

it.each(writers)('reads from %s the hosts that were written', (_form, write) => {
  fc.assert(
    fc.property(hosts, (list) => {
      expect(write(list)).toEqual(plain(list));
    }),
    { numRuns: 60 },
  );
});

it('reads the same from a table that was saved as UTF-16, or with a mark in front', () => {
  const table = 'name,address\nnode-1,10.0.0.1\n';
  const wide = Buffer.from(`\uFEFF${table}`, 'utf16le');
  for (const content of [`\uFEFF${table}`, wide.toString('latin1'), wide.toString('utf8')])
    expect(read('csv', content)).toMatchObject([{ name: 'node-1', address: '10.0.0.1' }]);
});

describe('ranges of names', () => {
  it('stand for as many names as they count, with as many digits', () => {
    const range = fc.record({
      from: fc.integer({ min: 0, max: 200 }),
      more: fc.integer({ min: 0, max: 50 }),
      step: fc.integer({ min: 1, max: 7 }),
      digits: fc.integer({ min: 1, max: 4 }),
    });
    fc.assert(
      fc.property(range, ({ from, more, step, digits }) => {
        const first = String(from).padStart(digits, '0');
        const expected: string[] = [];
        for (let at = from; at <= from + more; at += step)
          expected.push(`n${first.startsWith('0') ? String(at).padStart(first.length, '0') : at}.site`);
        const found = parseInventory('ini', `n[${first}:${from + more}:${step}].site`);
        expect(found.map(({ name }) => name)).toEqual(expected);
      }),
    );
  });
});

describe('groups that become labels', () => {
  const labelsOf = (groups: readonly string[], groupLabels: readonly string[]) =>
    Object.keys(
      parseInventory('ini', groups.map((group) => `[${group}]\nnode\n`).join(''), { groupLabels })[0]?.labels ?? {},
    ).map((label) => label.slice('ansible-group/'.length));

  it('are those that a pattern with * takes, as a regular expression would', () => {
    const group = fc.stringMatching(/^[ab]{1,6}$/);
    fc.assert(
      fc.property(
        fc.uniqueArray(group, { minLength: 1, maxLength: 6 }),
        fc.stringMatching(/^[ab*]{1,6}$/),
        (groups, pattern) => {
          const expression = new RegExp(`^${pattern.replaceAll('*', '.*')}$`);
          expect(labelsOf(groups, [pattern]).sort()).toEqual(groups.filter((name) => expression.test(name)).sort());
        },
      ),
    );
  });

  it('are none where no name is wanted, and all of several patterns', () => {
    expect(labelsOf(['web', 'db', 'prod'], [])).toEqual([]);
    expect(labelsOf(['web', 'db', 'prod'], ['w*', 'prod']).sort()).toEqual(['prod', 'web']);
  });
});

describe('a label list', () => {
  it('may have any of its separators, and values with = in them', () => {
    expect(parseLabelList(' role=worker; site=a=b,,ready\tx= ')).toEqual({
      role: 'worker',
      site: 'a=b',
      ready: '',
      x: '',
    });
    expect(parseLabelList('')).toEqual({});
  });
});

it.each([
  ['ansible_password', true],
  ['ansible_ssh_pass', true],
  ['ansible_become_password', true],
  ['sudo_passwd', true],
  ['PASSPHRASE', true],
  ['ansible_ssh_private_key', true],
  ['private_key_passphrase', true],
  ['secret', true],
  ['ansible_ssh_private_key_file', false],
  ['password_policy', false],
  ['compass', false],
])('takes %s for a secret: %s', (key, expected) => expect(isSecret(key)).toBe(expected));

it('reads beside the API what it reads here, with its warnings and its refusals', async () => {
  const warnings: string[] = [];
  const content = 'web:\n  hosts: {a: , a: {ansible_host: y}}\n';
  const found = await readInventory('yaml', content, { warn: (text) => warnings.push(text) });
  expect(found).toMatchObject([{ name: 'a', address: 'y' }]);
  expect(warnings).toEqual([expect.stringContaining('line 2')]);
  await expect(readInventory('yaml', 'a: [')).rejects.toMatchObject({
    code: 'inventory_invalid',
    details: { line: 1 },
  } satisfies Partial<AppError>);
});
