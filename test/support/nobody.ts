import { execFile } from 'node:child_process';

export interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a program as a local user without any rights. The tests have to run as root for that. */
export function asNobody(program: string, args: readonly string[], groups: readonly number[] = []): Promise<Outcome> {
  const rights = [
    '--reuid=65534',
    '--regid=65534',
    groups.length > 0 ? `--groups=${groups.join(',')}` : '--clear-groups',
    '--no-new-privs',
  ];
  return new Promise((resolve) =>
    execFile('setpriv', [...rights, program, ...args], { timeout: 30_000, cwd: '/' }, (error, stdout, stderr) =>
      resolve({ code: error ? Number(error.code ?? 1) : 0, stdout, stderr }),
    ),
  );
}

/** Whether `asNobody` can do what it says. */
export const canBeNobody = process.getuid?.() === 0;
