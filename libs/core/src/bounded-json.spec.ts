import { describe, expect, it } from 'vitest';
import { parseBoundedJson } from './bounded-json.js';

const parse = (text: string, bounds = {}) =>
  parseBoundedJson(Buffer.from(text), { maxBytes: 10_000_000, maxValues: 1_000, ...bounds });

describe('parseBoundedJson', () => {
  it('reads what JSON.parse reads, and counts nothing that stands in a string', () => {
    for (const text of [
      'null',
      '"a"',
      '[]',
      '{}',
      '[1,2,{"a":[true,"b"]}]',
      JSON.stringify({ text: '{},[],'.repeat(1_000), quote: '\\"\\\\"', more: ['\\'] }),
    ])
      expect(parse(text)).toEqual(JSON.parse(text));
  });

  it('refuses what is out of bounds before it parses anything', () => {
    for (const text of [
      '{},'.repeat(1_001),
      '['.repeat(40),
      `{${Array.from({ length: 1_100 }, (_, index) => `"${index}":0`).join(',')}}`,
      '"a',
      `[${'0,'.repeat(2_000)}0]`,
    ])
      expect(() => parse(text), text.slice(0, 20)).toThrow(SyntaxError);
    expect(() => parse('[1]', { maxBytes: 2 })).toThrow('more than 2 bytes');
    expect(() => parseBoundedJson(Buffer.from([0x22, 0xff, 0x22]), { maxBytes: 10, maxValues: 10 })).toThrow(
      'not UTF-8',
    );
    expect(() => parse('{"a":1,,}')).toThrow(SyntaxError);
  });
});
