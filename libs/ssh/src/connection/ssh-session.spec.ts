import { describe, expect, it } from 'vitest';
import { refusedExec, shellUnusable, sudoRefused } from './ssh-session.js';

describe('what is said of a login that runs nothing', () => {
  it.each([
    [undefined, '', 'it waits for something, and it said nothing'],
    [1, '', 'it ended with 1, and it said nothing'],
    [0, 'Choose:\n\u001b[1m1)\u001b[0m', 'it ended with 0, and it said: Choose: 1)'],
  ])('names its end (%s) and its words (%j)', (exitCode, said, expected) =>
    expect(shellUnusable('host:22', 'admin', exitCode, said)).toMatchObject({
      code: 'host_shell_unusable',
      details: { detail: `host:22: the login of admin runs no command; ${expected}` },
    }),
  );

  it('is told from a session that the host refused', () => {
    expect(refusedExec(new Error('Unable to exec'), 'host:22', 'admin')).toMatchObject({ code: 'host_shell_unusable' });
    for (const refused of [Object.assign(new Error('Unable to exec'), { reason: 1 }), new Error('No response')])
      expect(refusedExec(refused, 'host:22', 'admin')).toBe(refused);
  });
});

it.each([
  [true, 'sorry', 'with the sudoPassword of the credential: sorry'],
  [false, 'sorry', 'and the credential has no sudoPassword: sorry'],
  [true, 'you must have a tty to run sudo', 'requiretty is set in the sudoers of the host: you must have a tty'],
])('a sudo that refuses (password: %s, %j) says what to change', (hasPassword, words, expected) =>
  expect(sudoRefused('host:22', 'admin', hasPassword, words)).toMatchObject({
    code: 'host_sudo_failed',
    details: { detail: expect.stringContaining(expected) as string },
  }),
);
