/**
 * Starts programs through a small shell. A process that starts one itself is copied for that, and every page of its
 * memory that it then writes to costs a fault: with the buffers of a push more than the program's own work.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { AppError } from '@airdock/core/errors';

interface Waiting {
  program: string;
  resolve(): void;
  reject(reason: AppError): void;
}

/** The shell ends with this process, and keeps it alive only while a program runs. */
class HelperShell {
  #isGone = false;
  #last = 0;
  readonly #waiting = new Map<number, Waiting>();
  readonly #child: ChildProcessByStdio<Socket, Socket, null>;

  constructor() {
    // In a group of its own: a Ctrl-C is for us, who let what runs come to its end.
    this.#child = spawn('sh', [], { stdio: ['pipe', 'pipe', 'ignore'], detached: true }) as ChildProcessByStdio<
      Socket,
      Socket,
      null
    >;
    const gone = (cause?: unknown) => {
      this.#isGone = true;
      for (const { program, reject } of this.#waiting.values())
        reject(new AppError('internal_error', { detail: `${program}: its shell ended` }, { cause }));
      this.#waiting.clear();
    };
    this.#child.on('error', gone).on('exit', () => gone());
    this.#child.stdin.on('error', gone);
    createInterface({ input: this.#child.stdout }).on('line', (line) => this.#answer(line));
    this.#child.stdin.write('set -f\n');
    this.#hold(false);
  }

  get isGone(): boolean {
    return this.#isGone;
  }

  run(program: string, args: readonly string[], redirections: string): Promise<void> {
    const id = this.#last++;
    const command = [program, ...args].map(quote).join(' ');
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { program, resolve, reject });
      this.#hold(true);
      // One `printf`, so that answers of several programs do not mix. Started by a shell in between that ends at once,
      // which this one waits for: one that runs in the background itself would stay a zombie, since no shell waits for
      // those unasked.
      this.#child.stdin.write(
        `( (said=$( { ${command} ${redirections}; } 2>&1 ); code=$?; set -- $said; printf '%s\\n' "${id} $code $*") < /dev/null & )\n`,
      );
    });
  }

  #answer(line: string): void {
    const [id, code, ...words] = line.split(' ');
    const waiting = this.#waiting.get(Number(id));
    this.#waiting.delete(Number(id));
    if (this.#waiting.size === 0) this.#hold(false);
    if (code === '0') waiting?.resolve();
    else
      waiting?.reject(
        new AppError('internal_error', {
          detail: `${waiting.program} ended with ${code}: ${words.join(' ').slice(0, 500)}`,
        }),
      );
  }

  #hold(isNeeded: boolean): void {
    for (const part of [this.#child, this.#child.stdin, this.#child.stdout])
      if (isNeeded) part.ref();
      else part.unref();
  }
}

const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

let shell: HelperShell | undefined;

/** Early is better than late: the larger this process, the longer it takes. */
export function startHelperShell(): HelperShell {
  if (!shell || shell.isGone) shell = new HelperShell();
  return shell;
}

/**
 * Runs a program, with files as its input and output; without them it gets and says nothing. Throws `internal_error`
 * with its words when it fails.
 */
export function runProgram(
  program: string,
  args: readonly string[],
  { input, output }: { input?: string; output?: string } = {},
): Promise<void> {
  return startHelperShell().run(program, args, `< ${quote(input ?? '/dev/null')} > ${quote(output ?? '/dev/null')}`);
}
