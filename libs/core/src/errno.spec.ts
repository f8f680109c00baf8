import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { errnoOf, isGone } from './errno.js';

const here = fileURLToPath(import.meta.url);
const failureOf = (path: string): unknown => {
  try {
    return readFileSync(path);
  } catch (error) {
    return error;
  }
};

describe('errors of the operating system', () => {
  it('have a code', () => {
    expect(errnoOf(failureOf(`${here}.gone`))).toBe('ENOENT');
    expect(errnoOf(failureOf('/'))).toBe('EISDIR');
  });

  it.each([new Error('x'), undefined, null, 'ENOENT', { code: 2 }])('are not what has none: %s', (error) => {
    expect(errnoOf(error)).toBe('');
    expect(isGone(error)).toBe(false);
  });

  it('tell what is gone from what cannot be read', () => {
    expect(isGone(failureOf(`${here}.gone`))).toBe(true);
    expect(isGone(failureOf(`${here}/below-a-file`))).toBe(true);
    expect(isGone(failureOf('/'))).toBe(false);
  });
});
