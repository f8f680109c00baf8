import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { promisify } from 'node:util';
import { waitFor } from '@airdock/testing/servers';

const run = promisify(execFile);

/** The user `nobody`: someone on the machine who has no rights. */
export const nobody = 65534;
const asNobody = ['--reuid', String(nobody), '--regid', String(nobody), '--clear-groups', '--inh-caps=-all', '--'];

/** What a program that a local user without rights runs prints, and how it ends. Only root can become that user. */
export async function runAsNobody(
  program: string,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  try {
    return { code: 0, ...(await run('setpriv', [...asNobody, program, ...args], { cwd: '/', timeout: 30_000 })) };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, stdout, stderr };
  }
}

/** A program of a local user without rights that goes on running. */
export class NobodysProcess implements AsyncDisposable {
  private constructor(private readonly child: ChildProcess) {}

  /** Starts it, and waits until `isReady`. */
  static async start(isReady: () => Promise<boolean>, program: string, ...args: string[]): Promise<NobodysProcess> {
    const started = new NobodysProcess(
      spawn('setpriv', ['--pdeathsig', 'KILL', ...asNobody, program, ...args], { cwd: '/', stdio: 'ignore' }),
    );
    await waitFor(isReady, {
      what: `${program} of nobody to be ready`,
      giveUp: () => (started.isRunning ? undefined : new Error(`${program} has ended`)),
    });
    return started;
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  get isRunning(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.isRunning) return;
    const exited = new Promise((resolve) => this.child.once('exit', resolve));
    this.child.kill('SIGKILL');
    await exited;
  }
}

/** Status and body of a request that nobody sends with curl; status 0 when there is no connection. */
export async function curlAsNobody(url: string, ...options: string[]): Promise<{ status: number; body: string }> {
  const { stdout } = await runAsNobody('curl', '-sS', '-m', '10', '-w', '\n%{http_code}', ...options, url);
  const end = stdout.lastIndexOf('\n');
  return { status: Number(stdout.slice(end + 1)), body: stdout.slice(0, end) };
}
