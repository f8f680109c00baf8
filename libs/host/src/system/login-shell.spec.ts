/**
 * Logins that print around what they run, that are no POSIX shells, or run nothing: real shells, behind an SSH server
 * of the test.
 */
import { createHash, randomBytes } from 'node:crypto';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import type { AppError } from '@airdock/core/errors';
import { connectSsh } from '@airdock/ssh/connection/connect';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { parseHostKey } from '@airdock/ssh/connection/keys';
import { findProgram, type TempDir, tempDir } from '@airdock/testing/servers';
import { type SshServerOptions, startSshServer } from '@airdock/testing/ssh-server';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HostFiles } from './host-files.js';

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error as AppError,
  );
let folder: TempDir;
beforeAll(async () => {
  folder = await tempDir('login-shell');
});
afterAll(() => folder?.remove());

async function withLogin(
  options: Partial<SshServerOptions>,
  use: (connection: SshConnection) => Promise<void>,
): Promise<void> {
  await using server = await startSshServer({ password: 'secret word', sudo: 'free', ...options });
  const target = {
    address: '127.0.0.1',
    port: server.port,
    username: 'admin',
    password: 'secret word',
    hostKeyFingerprint: parseHostKey(server.hostKey),
  };
  await using connection = await connectSsh(target);
  await use(connection);
}

let count = 0;
/** bash with such a start file, as sshd starts it. */
async function bashWith(startFile: string): Promise<string[]> {
  const path = join(folder.path, `bashrc-${++count}`);
  await writeFile(path, startFile);
  return ['env', `BASH_ENV=${path}`, 'bash', '-c'];
}

const nasty = [
  "it's",
  '$(id)',
  '`id`',
  'a b',
  '',
  '*',
  'x;y',
  'a\nb',
  '\n',
  '"',
  '\\',
  "\\'",
  '\\\\n',
  'a!b !!',
  '%s',
  '-n',
  '☃',
  '\t',
  '~',
  '$HOME',
  '#x',
  '{a,b}',
];

/** Everything that is done on hosts in one way or another. */
async function works(connection: SshConnection): Promise<void> {
  expect(await connection.exec(['sh', '-c', 'cat; echo oops >&2; exit 3'], { stdin: 'in' })).toEqual({
    exitCode: 3,
    stdout: 'in',
    stderr: 'oops\n',
  });
  expect((await connection.exec(['printf', '%s|', ...nasty])).stdout).toBe(`${nasty.join('|')}|`);
  expect((await connection.exec(['printf', '%s|', ...nasty], { sudo: true })).stdout).toBe(`${nasty.join('|')}|`);
  const bytes = randomBytes(2_000_000);
  const digest = createHash('sha256').update(bytes).digest('hex');
  expect(await connection.run(['sha256sum'], { stdin: Readable.from([bytes]) })).toBe(`${digest}  -`);
  const files = new HostFiles(connection, new AbortController().signal);
  const before = await files.read(join(folder.path, `file-${++count}`));
  expect(before.text).toBeNull();
  await files.write(before, 'one\ntwo\n', { hasHeader: true });
  expect((await files.read(before.path)).text).toBe('one\ntwo\n');
}

describe('a login that prints', () => {
  const noises: [what: string, startFile: string, noise: RegExp | undefined][] = [
    ['a line', 'echo hi', /^hi$/],
    ['no end of a line', 'printf hi', /^hi$/],
    ['to its error output', 'echo "stty: not a terminal" >&2', /^stty: not a terminal$/],
    ['what moves a cursor', "printf '\\033[2J\\033]0;owned\\007Welcome\\n'", /^Welcome$/],
    ['at its end, with another exit code', "trap 'echo bye; exit 9' EXIT", /^bye$/],
    ['before and after', "echo hi; trap 'printf bye' EXIT", /^hi/],
    ['600 kB', 'head -c 600000 /dev/zero | tr "\\0" x', /^x{200}$/],
    ['every command that it runs', 'set -x', /^\+/],
    ['every line that it reads', 'set -v; :', undefined],
    ['bytes that are no text', "printf '\\377\\376\\000\\001'", /./],
    ['what looks like an answer', "echo 'present eHh4Cg=='; echo settled not absent", /^present/],
    ['from a program that goes on in the background', 'sleep 300 & echo $! >>"$0.pids"; echo hi', /^hi$/],
  ];
  it.each(noises)('%s is told apart from what it runs', async (_what, startFile, noise) => {
    const pids = join(folder.path, `pids-${count}`);
    const shell = await bashWith(startFile.replace('"$0.pids"', pids));
    await withLogin({ shell }, async (connection) => {
      await works(connection);
      if (noise) expect(connection.noise).toMatch(noise);
    });
    if (startFile.includes('sleep')) await endAll(pids);
  });

  it('more than a megabyte is not read to the end', async () => {
    const shell = await bashWith('head -c 100000000 /dev/zero | tr "\\0" x');
    await withLogin({ shell }, async (connection) =>
      expect(await failure(connection.run(['true']))).toMatchObject({
        code: 'host_output_exceeded',
        message: expect.stringContaining('does the login shell print'),
      }),
    );
  });

  it('nothing is noisy for nobody', () =>
    withLogin({}, async (connection) => {
      await works(connection);
      expect(connection.noise).toBeUndefined();
    }));

  it('through sudo too, where PAM says something', async () => {
    const sudo = join(folder.path, 'sudo');
    await writeFile(
      sudo,
      '#!/bin/sh\necho "Last login: today"\nwhile [ "$1" != -- ]; do shift; done; shift\nexec "$@"\n',
    );
    await chmod(sudo, 0o755);
    await withLogin({ shell: ['sh', '-c', `PATH=${folder.path}:$PATH; eval "$1"`, 'sh'] }, async (connection) => {
      expect(await connection.run(['echo', 'own'], { sudo: true })).toBe('own');
      expect(connection.noise).toBe('Last login: today');
    });
  });
});

describe('a sudo that runs nothing, and says that all is well,', () => {
  it.each([
    ['in silence', 'exit 0'],
    ['with a word of its own', 'echo sudo is not needed here'],
    ['on its error output', 'echo use doas >&2'],
  ])('is no success: %s', async (_what, script) => {
    const bin = join(folder.path, `bin-${++count}`);
    await mkdir(bin);
    await writeFile(join(bin, 'sudo'), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    await withLogin({ shell: ['sh', '-c', `PATH=${bin}:$PATH; eval "$1"`, 'sh'] }, async (connection) =>
      expect(await failure(connection.run(['cat', '/etc/hostname'], { sudo: true }))).toMatchObject({
        code: 'host_sudo_failed',
      }),
    );
  });
});

/** Programs that a test's login has left running. */
async function endAll(path: string): Promise<void> {
  for (const pid of (await readFile(path, 'utf8')).trim().split('\n')) process.kill(Number(pid));
}

const shells = [
  ['tcsh', '-c'],
  ['fish', '-c'],
  ['rbash', '-c'],
  ['dash', '-c'],
  ['busybox', 'sh', '-c'],
  ['zsh', '-c'],
  ['ksh', '-c'],
];
describe.each(shells.filter(([program = '']) => findProgram(program)).map((shell) => [shell[0] ?? '', shell] as const))(
  'a login shell that is %s',
  (_, shell) => {
    it('runs everything, as it is', () => withLogin({ shell }, works));
  },
);

describe('a login that runs nothing', () => {
  const logins: [what: string, shell: string[], seen: RegExp][] = [
    ['nologin', ['/usr/sbin/nologin'], /ended with 1, and it said: This account is currently not available/],
    ['false', ['false'], /ended with 1, and it said nothing/],
    ['true', ['true'], /ended with 0, and it said nothing/],
    [
      'a forced command',
      ['sh', '-c', 'echo "This key may only do backups" >&2; exit 3', 'sh'],
      /ended with 3, and it said: This key may only do backups/,
    ],
    ['one that splits what it gets into words', ['sh', '-c', 'exec $1', 'sh'], /it said: /],
    ['a program that is another', ['git', 'shell', '-c'], /it said: fatal: unrecognized command/],
    [
      'one with another protocol',
      ['sh', '-c', "printf '\\000\\000\\000\\005\\002\\000\\000\\000\\003'; exit 0", 'sh'],
      /ended with 0/,
    ],
    [
      'a shell without programs',
      ['env', 'PATH=/nowhere', '/bin/bash', '-r', '-c'],
      /ended with 127, and it said: .*sh: command not found/,
    ],
  ];
  it.each(logins)('is named: %s', async (_what, shell, seen) => {
    await withLogin({ shell }, async (connection) => {
      const error = await failure(connection.run(['true']));
      expect(error).toMatchObject({ code: 'host_shell_unusable', message: expect.stringMatching(seen) });
      expect(error?.message).toContain('the login of admin runs no command');
      expect(await failure(connection.elevation())).toMatchObject({ code: 'host_shell_unusable' });
    });
  });

  it('is named when its output ends in the middle, though it says that all is well', () =>
    withLogin({ shell: ['sh', '-c', 'sh -c "$1" | head -n 1', 'sh'] }, async (connection) =>
      expect(await failure(connection.run(['echo', 'x']))).toMatchObject({ code: 'host_shell_unusable' }),
    ));
});
