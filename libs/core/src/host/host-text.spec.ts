import { describe, expect, it } from 'vitest';
import { AppError, toProblem } from '../errors.js';
import { cleanDeep, cleanLine, cleanText } from './host-text.js';

describe('cleanText', () => {
  it.each([
    ['\u001b[2J\u001b[31mred\u001b[0m', 'red'],
    ['\u001b]0;title\u0007text', 'text'],
    ['\u001b]8;;http://x\u001b\\link', 'link'],
    ['\u009b31mred', 'red'],
    ['\u001bPq#0\u001b\\sixel', 'sixel'],
    ['a\rb\bc\u007fd\u0085e', 'abcde'],
    ['admin\u202enimda', 'adminnimda'],
    ['zero\u200bwidth\ufeff', 'zerowidth'],
    ['one\ttwo\nthree', 'one\ttwo\nthree'],
    ['Grüße, 漢字 👋', 'Grüße, 漢字 👋'],
    ['\ud800x', '\ufffdx'],
  ])('makes of %j %j', (text, clean) => expect(cleanText(text)).toBe(clean));

  it('is bounded, and one line where one is wanted', () => {
    expect(cleanText('x'.repeat(100), 10)).toBe(`${'x'.repeat(10)}…`);
    expect(cleanLine(' a\nb\t')).toBe('a b');
  });

  it('takes a long text of beginnings without ends', () => {
    for (const piece of ['\u001b[', '\u001b]', '\u001b[0', '\u009b;', '\u001b '])
      expect(cleanText(piece.repeat(500_000), 2_000_000)).not.toMatch(/[^\P{Cc}\n\t]/u);
  });
});

it('cleanDeep cleans keys and values, and bounds the depth', () => {
  let deep: unknown = 'x';
  for (let level = 0; level < 100_000; level++) deep = [deep];
  expect(cleanDeep({ 'a\u001b[31m': ['\u0007b', 1, null], deep })).toMatchObject({ a: ['b', 1, null] });
});

it('an error says nothing that a terminal would act on', () => {
  const error = new AppError('host_command_failed', {
    detail: 'x\u001b]0;owned\u0007\u202ey',
    offered: ['\u009b31m1.2'],
  });
  expect(error.message).toMatch(/: xy$/);
  expect(toProblem(error)).toMatchObject({ detail: 'xy', offered: ['1.2'] });
});
