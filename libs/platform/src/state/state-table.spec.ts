import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { checkedRow, type StateRow } from './state-table.js';

const schema = z.object({ id: z.string(), names: z.array(z.string().max(3)).optional(), more: z.unknown().optional() });
const check = (row: StateRow) => checkedRow('host', schema, row, String(row.id));
const nested = (depth: number): unknown => (depth === 0 ? 'x' : { in: nested(depth - 1) });

describe('a row of a state', () => {
  it('comes without the columns that its schema does not name', () => {
    expect(check({ id: 'a', names: ['b'], isAdmin: true })).toEqual({ id: 'a', names: ['b'] });
  });

  it.each([
    ['a text with NUL', { id: 'a', more: 'a\0b' }, 'more', 'NUL'],
    ['NUL far inside', { id: 'a', more: [{ b: ['\0'] }] }, 'more', 'NUL'],
    ['a name with NUL', { id: 'a', more: { 'x\0': 1 } }, 'more', 'NUL'],
    ['a prototype', { id: 'a', more: JSON.parse('{"__proto__":{"isAdmin":true}}') as unknown }, 'more', 'NUL'],
    ['what lies too deep', { id: 'a', more: nested(17) }, 'more', 'too deep'],
    ['a megabyte', { id: 'a', more: 'x'.repeat(1024 * 1024) }, 'the row', 'too large'],
    ['a wrong type', { id: 7 }, 'id', 'expected string'],
    ['a wrong value inside', { id: 'a', names: ['b', 'long'] }, 'names', 'at 1'],
  ])('is refused with %s, with the names of table, row and column', (_what, row, column, what) => {
    const details = { table: 'host', row: String(row.id), column, detail: expect.stringContaining(what) };
    expect(() => check(row)).toThrow(expect.objectContaining({ code: 'state_rows_invalid', details }));
  });

  it('may be nested as deep as rows of Airdock are', () => {
    expect(check({ id: 'a', more: nested(16) })).toEqual({ id: 'a', more: nested(16) });
  });

  it('says no more of a hostile name than is readable', () => {
    const key = 'k'.repeat(5_000);
    const refusal = (() => {
      try {
        return checkedRow('host', schema, { id: 7, ['c'.repeat(5_000)]: '\0' }, key);
      } catch (error) {
        return error as Error & { details: { detail: string; row: string } };
      }
    })();
    expect(refusal).toMatchObject({ code: 'state_rows_invalid' });
    expect((refusal.details as { detail: string }).detail.length).toBeLessThan(300);
    expect((refusal.details as { row: string }).row).toHaveLength(300);
  });
});
