import { describe, expect, it } from 'vitest';
import { AppError, type ErrorCode, errorDefinitions, fromProblem, isTransient, toProblem } from './errors.js';

const codes = Object.keys(errorDefinitions) as ErrorCode[];
/** What an error answers with whose code says nothing else. */
const familyStatus = {
  invalid: 422,
  unauthorized: 401,
  forbidden: 403,
  notFound: 404,
  conflict: 409,
  unavailable: 503,
  internal: 500,
} as const;

describe('error codes', () => {
  it.each(codes)('%s has a title, a next step and a status of its family', (code) => {
    const { title, nextStep, family, status = familyStatus[family] } = errorDefinitions[code];
    expect(code).toMatch(/^[a-z]+(_[a-z0-9]+)*$/);
    expect(title).toMatch(/^\S.*\S$/);
    expect(nextStep).toMatch(/^\S.*\.$/s);
    expect(new AppError(code).status).toBe(status);
    // What is the caller's fault is never said to be the server's.
    if (family !== 'unavailable' && family !== 'internal') expect(status).toBeLessThan(500);
  });

  it('are worth another try in one family only', () => {
    for (const code of codes)
      expect(isTransient(new AppError(code))).toBe(errorDefinitions[code].family === 'unavailable');
    expect(isTransient(new Error('ECONNREFUSED'))).toBe(false);
    expect(isTransient(undefined)).toBe(false);
  });
});

describe('a problem document', () => {
  it.each(codes)('of %s reads back as the error', (code) => {
    const error = new AppError(code, { detail: 'why', reference: 'a/b' });
    const problem = toProblem(error);
    expect(problem).toMatchObject({ type: `urn:airdock:problem:${code}`, code, status: error.status, detail: 'why' });
    expect(fromProblem(problem)).toEqual(error);
    expect(fromProblem(problem)).toMatchObject({ code, details: { detail: 'why', reference: 'a/b' } });
    expect(toProblem(fromProblem(problem))).toEqual(problem);
  });

  it('of what nobody expected says nothing of it', () => {
    for (const thrown of [new Error('password=x'), 'password=x', undefined, { password: 'x' }]) {
      const problem = toProblem(thrown);
      expect(problem).toMatchObject({ code: 'internal_error', status: 500 });
      expect(JSON.stringify(problem)).not.toContain('password');
    }
  });

  it('of a later version, whose code is not known here, is an internal error with its details', () => {
    const problem = { ...toProblem(new AppError('internal_error', { detail: 'why' })), code: 'toString' };
    expect(fromProblem(problem)).toMatchObject({ code: 'internal_error', details: { detail: 'why' } });
  });
});

it('an error keeps its cause, and names its title alone where there is no detail', () => {
  const cause = new Error('below');
  expect(new AppError('image_not_found', {}, { cause }).cause).toBe(cause);
  expect(new AppError('image_not_found').message).toBe(errorDefinitions.image_not_found.title);
  expect(new AppError('image_not_found', { detail: 'a' }).message).toBe(`${errorDefinitions.image_not_found.title}: a`);
});
