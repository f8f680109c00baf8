import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { packageFamily, renderAptList, renderYumRepo, repositoriesFor, type ServedRepository } from './package-list.js';

const url = 'http://127.0.0.1:5102';
const repository = (change: Partial<ServedRepository>): ServedRepository => ({
  name: 'docker',
  format: 'apt',
  distributions: [],
  components: ['main'],
  ...change,
});

describe('packageFamily', () => {
  it.each([
    ['debian', '', 'debian'],
    ['ubuntu', 'debian', 'debian'],
    ['rocky', 'rhel centos fedora', 'redhat'],
    ['ol', 'fedora', 'redhat'],
    ['raspbian', 'debian', 'debian'],
    ['alpine', '', undefined],
    ['', '', undefined],
  ])('of %j like %j is %s', (id, like, family) => expect(packageFamily(id, like)).toBe(family));
});

describe('repositoriesFor', () => {
  it('gives what a host can use: its format, and its distribution where there are several', () => {
    const all = [
      repository({ name: 'flat' }),
      repository({ name: 'bookworm', distributions: ['bookworm'] }),
      repository({ name: 'jammy', distributions: ['jammy'] }),
      repository({ name: 'el', format: 'yum', distributions: ['8', '9'] }),
    ];
    const names = (...host: ['debian' | 'redhat', string]) => repositoriesFor(all, ...host).map(({ name }) => name);
    expect(names('debian', 'bookworm')).toEqual(['flat', 'bookworm']);
    expect(names('redhat', '9')).toEqual(['el']);
    expect(names('redhat', '7')).toEqual([]);
  });
});

it('renderAptList writes flat repositories and suites', () => {
  const text = renderAptList(
    [repository({}), repository({ name: 'pf9', distributions: ['bookworm'], components: ['main', 'extra'] })],
    url,
    'bookworm',
  );
  expect(text.split('\n').slice(1)).toEqual([
    'deb [signed-by=/etc/apt/keyrings/airdock.asc] http://127.0.0.1:5102/docker ./',
    'deb [signed-by=/etc/apt/keyrings/airdock.asc] http://127.0.0.1:5102/pf9 bookworm main extra',
    '',
  ]);
  expect(text).toMatch(/^# Written by Airdock/);
});

it('renderYumRepo checks the metadata always, packages where there is a key for them, and never uses a proxy', () => {
  const text = renderYumRepo(
    [
      repository({ format: 'yum' }),
      repository({ name: 'pf9', format: 'yum', distributions: ['9'], gpgKey: 'RPM-GPG-KEY' }),
    ],
    url,
    '9',
  );
  expect(text).toContain(
    '[airdock-docker]\nname=docker, served by Airdock\nbaseurl=http://127.0.0.1:5102/docker/\nenabled=1\nrepo_gpgcheck=1\ngpgcheck=0\n',
  );
  expect(text).toContain('baseurl=http://127.0.0.1:5102/pf9/9/\nenabled=1\nrepo_gpgcheck=1\ngpgcheck=1\n');
  const own = 'file:///etc/pki/rpm-gpg/RPM-GPG-KEY-airdock';
  expect(text.match(/^gpgkey=.*$/gm)).toEqual([`gpgkey=${own}`, `gpgkey=${own} ${own}-pf9`]);
  expect(text.match(/proxy=_none_/g)).toHaveLength(2);
});

describe('lists of packages', () => {
  const names = fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/);
  const repositories = fc.uniqueArray(
    fc.record({
      name: names,
      format: fc.constantFrom('apt' as const, 'yum' as const),
      distributions: fc.subarray(['bookworm', 'jammy', '8', '9']),
      components: fc.uniqueArray(names, { minLength: 1, maxLength: 3 }),
    }),
    { selector: ({ name }) => name, maxLength: 6 },
  );

  it('give no host a repository of another format or distribution, and leave out none of its own', () => {
    const hosts = fc.constantFrom(['debian', 'bookworm'] as const, ['redhat', '9'] as const);
    fc.assert(
      fc.property(repositories, hosts, (all, [family, distribution]) => {
        const given = repositoriesFor(all, family, distribution);
        const isFit = ({ format, distributions }: ServedRepository) =>
          (format === 'apt') === (family === 'debian') &&
          (distributions.length === 0 || distributions.includes(distribution));
        expect(given).toEqual(all.filter(isFit));
      }),
    );
  });

  it('have one line, or one section, for each repository, all of them at the one address and signed', () => {
    fc.assert(
      fc.property(repositories, (all) => {
        const apt = renderAptList(all, url, 'bookworm').trimEnd().split('\n').slice(1);
        expect(apt).toHaveLength(all.length);
        for (const [index, { name }] of all.entries()) {
          expect(apt[index]).toMatch(/^deb \[signed-by=\/etc\/apt\/keyrings\/airdock\.asc\] /);
          expect(apt[index]).toContain(` ${url}/${name} `);
        }
        const yum = renderYumRepo(all, url, '9');
        expect(yum.match(/^\[.*\]$/gm) ?? []).toEqual(all.map(({ name }) => `[airdock-${name}]`));
        expect(yum.match(/^repo_gpgcheck=1$/gm) ?? []).toHaveLength(all.length);
      }),
    );
  });
});
