import { describe, expect, it } from 'vitest';
import { AppError } from './errors.js';
import { labelKey, labelValue, matchesLabels, parseLabelSelector } from './label-selector.js';

const matches = (selector: string, labels: Record<string, string>) =>
  matchesLabels(parseLabelSelector(selector), labels);

describe('parseLabelSelector', () => {
  it('reads all forms, with and without blanks', () => {
    const expected = [
      { key: 'role', not: false, values: ['worker'] },
      { key: 'site', not: true, values: ['b'] },
      { key: 'env', not: false, values: ['a', 'b'] },
      { key: 'example.com/tier', not: true, values: ['x', ''] },
      { key: 'gpu', not: false },
      { key: 'old', not: true },
    ];
    expect(parseLabelSelector('role=worker,site!=b,env in (a,b),example.com/tier notin (x,),gpu,!old')).toEqual(
      expected,
    );
    expect(
      parseLabelSelector(' role == worker , site != b,env in(a , b), example.com/tier notin ( x, ) ,gpu , ! old '),
    ).toEqual(expected);
    expect(parseLabelSelector('in,notin in (in)')).toEqual([
      { key: 'in', not: false },
      { key: 'notin', not: false, values: ['in'] },
    ]);
    expect(parseLabelSelector('')).toEqual([]);
    expect(parseLabelSelector('role=')).toEqual([{ key: 'role', not: false, values: [''] }]);
  });

  it.each([
    '=',
    'a,',
    ',a',
    'a b',
    'a in',
    'a in (',
    'a in (b',
    'a in b',
    'a in ((b))',
    'a=b=c',
    '!',
    '!a=b',
    '-a',
    'a=-b',
    'a/b/c',
    'a>1',
    `a=${'b'.repeat(64)}`,
  ])('refuses %s', (text) => {
    try {
      parseLabelSelector(text);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(AppError);
      expect(error).toMatchObject({ code: 'label_selector_invalid' });
    }
  });
});

describe('matchesLabels', () => {
  it('wants all requirements met, and takes a missing label for one that is not the value', () => {
    const labels = { role: 'worker', env: 'a', gpu: '' };
    expect(matches('role=worker,site!=b,env in (a,b),gpu,!old', labels)).toBe(true);
    expect(matches('', labels)).toBe(true);
    for (const selector of [
      'role=master',
      'role!=worker',
      'env notin (a)',
      '!gpu',
      'site',
      'site=',
      'site in (a,)',
      'role=worker,site',
    ])
      expect(matches(selector, labels)).toBe(false);
    expect(matches('gpu=,site notin (a)', labels)).toBe(true);
    expect(matches('constructor', labels)).toBe(false);
  });
});

describe('labels', () => {
  it('are those of Kubernetes', () => {
    for (const key of ['a', 'A_b.c-d', 'example.com/x', `${'a'.repeat(63)}.example/${'b'.repeat(63)}`])
      expect(labelKey.test(key)).toBe(true);
    for (const key of [
      '',
      'a/',
      '/a',
      'A.com/x',
      'a..b/x',
      '-a',
      'a-',
      'a b',
      'é',
      'a'.repeat(64),
      `${'a.'.repeat(127)}a/x`,
    ])
      expect(labelKey.test(key)).toBe(false);
    for (const value of ['', 'a', '1.20', 'A_b']) expect(labelValue.test(value)).toBe(true);
    for (const value of ['-', 'a-', 'a b', 'a/b', 'a'.repeat(64)]) expect(labelValue.test(value)).toBe(false);
  });
});
