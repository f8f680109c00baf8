import { describe, expect, it } from 'vitest';
import { parseStrictJson } from './strict-json.js';

const parse = (text: string | Uint8Array) => parseStrictJson(Buffer.from(text));

describe('parseStrictJson', () => {
  it.each([
    '{"a":{"b":1},"c":{"b":2}}',
    '[{"a":1},{"a":2}]',
    '{"a":"a","b":["a","a"]}',
    '{ "a\\"" : 1, "a" : "x\\\\", "\\\\" : "}{][" }',
    '"\\\\\\""',
    '[]',
    '1',
    `${'['.repeat(100)}${']'.repeat(100)}`,
  ])('reads %s as JSON.parse does', (text) => expect(parse(text)).toEqual(JSON.parse(text)));

  it.each([
    ['a repeated key', '{"a":1,"b":{},"a":2}', /"a" is repeated/],
    ['a repeated key in other letters', '{"a":1,"\\u0061":2}', /"a" is repeated/],
    ['a repeated key in a list', '[{"x":{"a":1 , "a" :2}}]', /"a" is repeated/],
    ['101 levels', `${'['.repeat(101)}${']'.repeat(101)}`, /more than 100 levels/],
    ['a byte order mark', '\ufeff{}', /./],
    ['what is not UTF-8', Uint8Array.of(0x22, 0xff, 0x22), /not UTF-8/],
    ['what is no JSON', '{"a"', /./],
  ] as const)('refuses %s', (_what, text, message) => {
    const read = () => parse(text);
    expect(read).toThrow(SyntaxError);
    expect(read).toThrow(message);
  });
});
