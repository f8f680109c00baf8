import { execFileSync, spawnSync } from 'node:child_process';
import { findProgram } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { beginOf, endOf, marked, newMark, shellLine } from './shell-line.js';

const odd = [
  '',
  ' ',
  "it's",
  '"',
  '\\',
  '$HOME',
  '`id`',
  '!!',
  'a\nb',
  'a\tb',
  'ä€😀',
  '*',
  '-n',
  '%s',
  '\\0101',
  ';',
  '&',
];
const shells = ['sh', 'bash', 'dash', 'tcsh', 'fish', 'busybox'].filter((name) => findProgram(name) !== undefined);

describe('shellLine', () => {
  it('is one line of printable characters', () => {
    expect(shellLine(['printf', ...odd])).toMatch(/^[ -~]+$/);
  });

  it.each(shells)('gives a program its arguments as they are, by %s', (shell) => {
    const argv = shell === 'busybox' ? ['sh', '-c'] : ['-c'];
    const line = shellLine(['printf', '%s\\n', ...odd.map((word) => `<${word}>`)]);
    const output = execFileSync(findProgram(shell) as string, [...argv, line], { encoding: 'utf8' });
    expect(output).toBe(odd.map((word) => `<${word}>\n`).join(''));
  });
});

describe('marked', () => {
  const run = (...argv: string[]) => {
    const mark = newMark();
    const [program = '', ...words] = marked(argv, mark);
    const { status, stdout, stderr } = spawnSync(program, words, { encoding: 'utf8' });
    return { mark, status, stdout, stderr };
  };

  it('marks both outputs, also where the last line has no end, and passes the exit code on', () => {
    const { mark, status, stdout, stderr } = run('sh', '-c', 'printf out; printf err >&2; exit 7');
    expect(status).toBe(7);
    expect(stdout).toBe(`${beginOf(mark)}out${endOf(mark)}7\n`);
    expect(stderr).toBe(`${beginOf(mark)}err${endOf(mark)}7\n`);
  });

  it('tells a program that is not there', () => {
    const { mark, status, stdout, stderr } = run('no-such-program-of-airdock');
    expect(status).toBe(127);
    expect(stdout).toBe(`${beginOf(mark)}${endOf(mark)}127\n`);
    expect(stderr).toContain('not found');
  });

  it('uses a mark once', () => {
    expect(newMark()).not.toBe(newMark());
  });
});
