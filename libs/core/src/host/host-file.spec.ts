import { describe, expect, it } from 'vitest';
import { fileDiff, isOwn, maskSecrets, ownHeader } from './host-file.js';

describe('fileDiff', () => {
  it('is a unified diff, with /dev/null for a file that is not there', () => {
    expect(fileDiff('/etc/x', null, 'a\n')).toMatch(
      /^--- \/dev\/null\t?\n\+\+\+ \/etc\/x\t?\n@@ -0,0 \+1,1 @@\n\+a\n$/,
    );
    expect(fileDiff('/etc/x', 'a\nb\n', 'a\nc\n')).toContain('\n a\n-b\n+c\n');
  });

  it('shows no password of the lines around a change, and is bounded', () => {
    const before = '{\n  "http-proxy": "http://user:sesame@proxy:3128",\n  "auth": "c2VzYW1l",\n  "debug": false\n}\n';
    const diff = fileDiff('/etc/docker/daemon.json', before, before.replace('false', 'true'));
    expect(diff).not.toMatch(/sesame|c2VzYW1l/);
    expect(diff).toContain('http://***@proxy:3128');
    expect(fileDiff('/x', null, 'x'.repeat(100_000)).length).toBeLessThan(21_000);
  });
});

describe('fileDiff of what a host has made long', () => {
  const lines = (count: number, of: (index: number) => string) =>
    Array.from({ length: count }, (_, index) => of(index)).join('\n');
  it.each([
    [
      'every line differs',
      lines(20_000, (index) => `"a${index}": ${index},`),
      lines(20_000, (index) => `"b${index}": ${index},`),
    ],
    ['a hundred thousand empty lines', '\n'.repeat(500_000), '{}\n'],
    ['one long line', 'x'.repeat(500_000), 'y'.repeat(500_000)],
    [
      'every second line differs',
      lines(50_000, (index) => `${index}`),
      lines(50_000, (index) => `${index % 2 ? index : -index}`),
    ],
  ])('is bounded where %s', (_what, before, after) => {
    const started = performance.now();
    const diff = fileDiff('/etc/docker/daemon.json', before, after);
    // On the code before it was minutes.
    expect(performance.now() - started).toBeLessThan(10_000);
    expect(diff.length).toBeLessThan(21_000);
    expect(diff).toContain('+++ /etc/docker/daemon.json');
  });

  it('has nothing that a terminal would act on', () => {
    expect(fileDiff('/x', 'a\u001b[2J\u202eb\n', 'c\n')).toContain('-ab\n+c\n');
  });
});

describe('maskSecrets', () => {
  it.each([
    ['password = "se\\"same"', 'password = ***'],
    ["token: 'sesame'", 'token: ***'],
    ['[deb trusted=yes] http://127.0.0.1:5102/x', '[deb trusted=yes] http://127.0.0.1:5102/x'],
  ])('makes of %s %s', (text, masked) => expect(maskSecrets(text)).toBe(masked));
});

it('isOwn knows what Airdock wrote', () => {
  expect([isOwn(`${ownHeader}\nx`), isOwn('x'), isOwn(null)]).toEqual([true, false, false]);
});
