import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AppError } from './errors.js';
import { labelKey, labelValue, matchesLabels, parseLabelSelector, type Requirement } from './label-selector.js';

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

describe('selectors, whatever their labels', () => {
  const names = fc.stringMatching(/^[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?$/);
  const keys = fc
    .tuple(fc.option(fc.stringMatching(/^[a-z]{1,5}(\.[a-z]{1,5})?$/)), names)
    .map(([domain, name]) => (domain === null ? name : `${domain}/${name}`));
  const values = fc.oneof(names, fc.constant(''));
  const requirements: fc.Arbitrary<Requirement> = fc.oneof(
    fc.record({ key: keys, not: fc.boolean() }),
    fc.record({ key: keys, not: fc.boolean(), values: fc.array(values, { minLength: 1, maxLength: 3 }) }),
  );
  const blanks = fc.constantFrom('', ' ', '\t ');
  /** Every form is written with and without blanks; one value is written as an equality. */
  const format = ({ key, not, values: wanted }: Requirement, blank: string): string => {
    if (!wanted) return `${not ? `!${blank}` : ''}${key}`;
    if (wanted.length === 1) return `${key}${blank}${not ? '!=' : '='}${blank}${wanted[0]}`;
    return `${key} ${not ? 'notin' : 'in'}${blank}(${wanted.join(`${blank},${blank}`)}${blank})`;
  };

  it('are read as they are written', () => {
    fc.assert(
      fc.property(fc.array(requirements, { maxLength: 5 }), blanks, (wanted, blank) => {
        const text = wanted.map((one) => format(one, blank)).join(`${blank},${blank}`);
        expect(parseLabelSelector(text)).toEqual(wanted);
      }),
    );
  });

  it('match labels as long as each requirement does, and its opposite does not', () => {
    const labels = fc.dictionary(fc.constantFrom('a', 'b', 'c'), fc.constantFrom('', 'x', 'y'));
    const few = fc.oneof(
      fc.record({ key: fc.constantFrom('a', 'b', 'c'), not: fc.boolean() }),
      fc.record({
        key: fc.constantFrom('a', 'b', 'c'),
        not: fc.boolean(),
        values: fc.subarray(['', 'x', 'y'], { minLength: 1 }),
      }),
    );
    fc.assert(
      fc.property(fc.array(few, { maxLength: 4 }), labels, (wanted, has) => {
        for (const one of wanted)
          expect(matchesLabels([{ ...one, not: !one.not }], has)).toBe(!matchesLabels([one], has));
        expect(matchesLabels(wanted, has)).toBe(wanted.every((one) => matchesLabels([one], has)));
      }),
    );
  });

  it('end with an answer whatever the text', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'ab=!,() \tin') }), (text) => {
        try {
          expect(matchesLabels(parseLabelSelector(text), { a: 'b' })).toBeTypeOf('boolean');
        } catch (error) {
          expect(error).toMatchObject({ code: 'label_selector_invalid' });
        }
      }),
    );
  });

  it.each([
    ['a,', 'a label key is missing at the end'],
    ['a=-', '- is no label value'],
    ['a in b', 'a ( is missing after in or notin'],
    ['a in (b', 'a ) is missing'],
    ['a=b c', 'c is not expected after a=b'],
    ['a'.repeat(2_001), 'longer than 2000 characters'],
  ])('say what is wrong with %j', (text, detail) =>
    expect(() => parseLabelSelector(text)).toThrow(expect.objectContaining({ details: { detail } })),
  );
});
