import { describe, expect, it } from 'vitest';
import { fileDiff, isOwn, maskSecrets, ownHeader } from './host-file.js';

describe('fileDiff', () => {
  it('is a unified diff, with /dev/null for a file that is not there', () => {
    expect(fileDiff('/etc/x', null, 'a\n')).toMatch(/^--- \/dev\/null\t?\n\+\+\+ \/etc\/x\t?\n@@ -0,0 \+1,1 @@\n\+a\n$/);
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
