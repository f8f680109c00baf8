import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { AppError } from '../errors.js';
import { mergeDaemonJson, unmergeDaemonJson } from './daemon-json.js';

const mirror = 'http://127.0.0.1:5100';
const own = `"registry-mirrors": ["${mirror}"]`;
const refusal = (action: () => unknown) => {
  try {
    action();
  } catch (error) {
    expect((error as AppError).code).toBe('host_file_refused');
    return (error as AppError).message;
  }
  return undefined;
};

describe('mergeDaemonJson', () => {
  it.each([[null], [''], ['  \n'], ['{}']])('of %j has the mirror alone', (text) =>
    expect(mergeDaemonJson(text, mirror).trimEnd()).toBe(`{\n  "registry-mirrors": ["${mirror}"]\n}`),
  );

  it.each([
    [
      'a number that JavaScript cannot hold',
      '{\n  "default-shm-size": 9223372036854775807\n}',
      `{\n  "default-shm-size": 9223372036854775807,\n  ${own}\n}`,
    ],
    ['line ends of Windows', '{\r\n    "debug": true\r\n}\r\n', `{\r\n    "debug": true,\r\n    ${own}\r\n}\r\n`],
    ['tabs', '{\n\t"debug":true\n}\n', `{\n\t"debug":true,\n\t${own}\n}\n`],
    ['a byte order mark', '\ufeff{\n  "debug": true\n}', `\ufeff{\n  "debug": true,\n  ${own}\n}`],
    ['what looks like such a mark in a value', '{"a":"\ufeffb"}', `{"a":"\ufeffb",${own}}`],
    [
      'one line',
      '{"debug":true, "log-opts":{"max-size":"10m"}}',
      `{"debug":true, "log-opts":{"max-size":"10m"}, ${own}}`,
    ],
    [
      'escapes and strange blanks',
      '{ "a" : "\\u00e9\\/" ,\n\n "b":1.0e+2 }',
      `{ "a" : "\\u00e9\\/" ,\n\n "b":1.0e+2,\n\n ${own} }`,
    ],
    ['a key that is there twice, of which Docker takes the last', '{"a":1,"a":2}', `{"a":1,"a":2,${own}}`],
    [
      'mirrors of others, behind ours',
      '{"registry-mirrors": ["https://m.site"], "b": 1}',
      `{"registry-mirrors": ["${mirror}", "https://m.site"], "b": 1}`,
    ],
    [
      'mirrors one below the other',
      '{"registry-mirrors": [\n    "https://m"\n  ]}',
      `{"registry-mirrors": [\n    "${mirror}",\n    "https://m"\n  ]}`,
    ],
    ['an empty list', '{"registry-mirrors": [ ]}', `{"registry-mirrors": ["${mirror}"]}`],
    [
      'a list that is null, as Go writes it',
      '{"registry-mirrors":null,"b":1}',
      `{"registry-mirrors":["${mirror}"],"b":1}`,
    ],
    [
      'ours behind another one',
      `{"registry-mirrors": ["https://m", "${mirror}"]}`,
      `{"registry-mirrors": ["${mirror}", "https://m"]}`,
    ],
    [
      'ours with a slash, as the last of three',
      `{"registry-mirrors":["https://m","https://n","${mirror}/"]}`,
      `{"registry-mirrors":["${mirror}", "https://m","https://n"]}`,
    ],
    [
      'ours between others, one below the other',
      `{"registry-mirrors": [\n    "https://m",\n    "${mirror}",\n    "https://n"\n  ]}`,
      `{"registry-mirrors": [\n    "${mirror}",\n    "https://m",\n    "https://n"\n  ]}`,
    ],
    [
      'ours twice behind others',
      `{"registry-mirrors": ["https://m", "${mirror}", "${mirror}/"], "b": 1}`,
      `{"registry-mirrors": ["${mirror}", "https://m"], "b": 1}`,
    ],
    ['a key of that name further down', '{"x":{"registry-mirrors":[]}}', `{"x":{"registry-mirrors":[]},${own}}`],
  ])('leaves %s as it is, and gives it back', (_, text, merged) => {
    expect(mergeDaemonJson(text, mirror)).toBe(merged);
    expect(mergeDaemonJson(merged, mirror)).toBe(merged);
    expect(unmergeDaemonJson(merged, text, mirror)).toBe(text);
  });

  it('gives the text itself back when it has the mirror', () => {
    for (const written of [mergeDaemonJson('{"a":1}', mirror), `{ "registry-mirrors":["${mirror}/"] }`])
      expect(mergeDaemonJson(written, mirror)).toBe(written);
  });

  it.each([
    ['{', 'not valid JSON'],
    ['[]', 'not a JSON object'],
    ['null', 'not a JSON object'],
    ['"x"', 'not a JSON object'],
    ['{"a": 01}', 'not valid JSON'],
    ['{} {}', 'not valid JSON'],
    ['{"a": "\t"}', 'not valid JSON'],
    ['{\n  "a": 1,\n}', 'a comma, colon or bracket that nothing follows in line 3'],
    ['{"a": [1,]}', 'a comma, colon or bracket that nothing follows in line 1'],
    ['{\n  // mine\n  "a": 1\n}', 'a comment, which Docker does not take, in line 2'],
    ['{"a": /* mine */ 1}', 'a comment, which Docker does not take, in line 1'],
    ['{"registry-mirrors":"x"}', 'no list of strings'],
    ['{"registry-mirrors":[1]}', 'no list of strings'],
    ['{"registry-mirrors":[],"a":1,"registry-mirrors":[]}', 'registry-mirrors twice'],
    [`{"a":${'['.repeat(100_000)}`, 'more than 100 levels'],
  ])('refuses %j, and says why', (text, why) => expect(refusal(() => mergeDaemonJson(text, mirror))).toContain(why));
});

describe('unmergeDaemonJson', () => {
  it.each([[null], ['{}'], [''], ['\ufeff'], ['{\n\t"a": 1,\n\t"registry-mirrors": ["https://mirror.site"]\n}']])(
    'gives back %j as it was',
    (before) => expect(unmergeDaemonJson(mergeDaemonJson(before, mirror), before, mirror)).toBe(before),
  );

  it('keeps what was changed since, to the byte', () => {
    const merged = mergeDaemonJson('{"a": 1}', mirror).replace('"a": 1', '"a":\t9223372036854775807, "c": []');
    expect(unmergeDaemonJson(merged, '{"a": 1}', mirror)).toBe('{"a":\t9223372036854775807, "c": []}');
    expect(unmergeDaemonJson('{"a": 3}', '{"a": 1}', mirror)).toBe('{"a": 3}');
    expect(unmergeDaemonJson(`{${own}, "b": 1}`, null, mirror)).toBe('{"b": 1}');
    expect(
      unmergeDaemonJson(`{"registry-mirrors": ["https://a", "${mirror}", "https://b", "${mirror}/"]}`, null, mirror),
    ).toBe('{"registry-mirrors": ["https://a", "https://b"]}');
  });

  it('is refused for what became no JSON since', () =>
    expect(refusal(() => unmergeDaemonJson(`{${own},}`, null, mirror))).toContain('line 1'));
});

it('what is merged means what was there with the mirror before it, and without it is what was there, whatever that is', () => {
  const blank = fc.constantFrom('', ' ', '\n', '\r\n  ', '\t');
  const value = fc.jsonValue({ maxDepth: 2 }).map((one) => JSON.stringify(one));
  const member = fc.tuple(blank, fc.constantFrom('a', 'b', 'c', 'é"'), blank, value, blank);
  const list = fc
    .tuple(blank, fc.array(fc.oneof(fc.webUrl(), fc.constantFrom(mirror, `${mirror}/`)), { maxLength: 4 }), blank)
    .map(([one, urls, two]) => `[${one}${urls.map((url) => JSON.stringify(url)).join(`,${two}`)}]`);
  const members = fc.uniqueArray(member, { maxLength: 4, selector: ([, name]) => name });
  fc.assert(
    fc.property(members, fc.option(list), fc.nat(4), blank, (others, mirrors, at, end) => {
      const parts = others.map(([a, name, b, content, c]) => `${a}${JSON.stringify(name)}${b}:${content}${c}`);
      if (mirrors !== null) parts.splice(Math.min(at, parts.length), 0, `"registry-mirrors":${mirrors}`);
      const text = `{${parts.join(',')}${end}}`;
      const merged = mergeDaemonJson(text, mirror);
      const before = JSON.parse(text) as Record<string, unknown>;
      const listed = (before['registry-mirrors'] as string[] | undefined) ?? [];
      const isOurs = (one: string | undefined) => one === mirror || one === `${mirror}/`;
      const foreign = listed.filter((one) => !isOurs(one));
      expect(JSON.parse(merged)).toEqual({
        ...before,
        'registry-mirrors': isOurs(listed[0]) ? listed : [mirror, ...foreign],
      });
      expect(unmergeDaemonJson(merged, text, mirror)).toBe(text);
      before['registry-mirrors'] = foreign;
      // Of a file whose first version is gone every other member stays.
      const taken = JSON.parse(unmergeDaemonJson(merged, null, mirror) ?? '{}') as Record<string, unknown>;
      expect({ 'registry-mirrors': [], ...taken }).toEqual({ 'registry-mirrors': [], ...before });
    }),
  );
});
