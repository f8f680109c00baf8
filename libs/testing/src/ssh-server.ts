/**
 * An SSH server in this process, for what a real sshd on loopback cannot do in a test: passwords of its own, sudo that
 * asks, hosts that lie.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import ssh2, { type AuthContext, type Connection, type ServerChannel } from 'ssh2';
import { tempDir } from './servers.js';
import { printed, readCommand } from './ssh-command.js';
import { sshKeyPair } from './ssh-keys.js';

export interface SshServerOptions {
  /** Default `admin`. */
  user?: string;
  password: string;
  /**
   * How it asks for the password. With `code` it then asks for a one-time code, which is never right. Default
   * `password`.
   */
  asks?: 'password' | 'keyboard-interactive' | 'code';
  /** What sudo wants to hear: a password; `free` wants none. Default: `no`, the user may not use it. */
  sudo?: { password: string } | 'free' | 'no';
  /** Runs the commands; the command is the last argument. Default `sh -c`. */
  shell?: string[];
  /** Where commands find programs. Default: where this process does. */
  path?: string;
  /** What a command prints, given all of its input, instead of being run; undefined lets it run. */
  answer?: (command: string, input: string) => string | undefined;
  /** Says yes to forwards, which lead nowhere. */
  takesForwards?: boolean;
}

export interface SshServer extends AsyncDisposable {
  port: number;
  /** A public key line. */
  hostKey: string;
  /** The commands that were run. */
  commands: string[];
  stop(): Promise<void>;
}

// As sudo does in its messages and its exit code; reads its line byte by byte, since `read` does so from a pipe.
const fakeSudo = `#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in -n) silent=1 ;; -p) shift ;; --) shift; break ;; esac
  shift
done
if [ "$FAKE_SUDO" != free ]; then
  if [ -n "$silent" ]; then echo 'sudo: a password is required' >&2; exit 1; fi
  IFS= read -r line
  if [ "$FAKE_SUDO" != "has $line" ]; then echo "Sorry, try again. Was it $line?" >&2; echo 'sudo: 1 incorrect password attempt' >&2; exit 1; fi
fi
exec "$@"
`;

/** Starts the server. Commands run on this machine as the user that runs the tests, whatever `sudo` says. */
export async function startSshServer(options: SshServerOptions): Promise<SshServer> {
  const {
    user = 'admin',
    password,
    asks = 'password',
    sudo = 'no',
    shell = ['sh', '-c'],
    path = process.env.PATH,
    answer,
    takesForwards,
  } = options;
  const dir = await tempDir('ssh-server');
  const bin = join(dir.path, 'bin');
  await mkdir(bin);
  await writeFile(join(bin, 'sudo'), fakeSudo);
  await chmod(join(bin, 'sudo'), 0o755);
  const env = {
    ...process.env,
    PATH: `${bin}:${path}`,
    FAKE_SUDO: typeof sudo === 'string' ? sudo : `has ${sudo.password}`,
  };
  const key = sshKeyPair();
  const commands: string[] = [];
  const connections = new Set<Connection>();
  const children = new Set<ChildProcess>();

  const authenticate = (context: AuthContext) => {
    const wanted = asks === 'password' ? 'password' : 'keyboard-interactive';
    if (context.username !== user || context.method !== wanted) return context.reject([wanted]);
    if (context.method === 'password') return context.password === password ? context.accept() : context.reject();
    return context.prompt([{ prompt: 'Password: ', echo: false }], (answers) => {
      if (answers[0] !== password) return context.reject();
      if (asks === 'keyboard-interactive') return context.accept();
      return context.prompt([{ prompt: 'Code: ', echo: false }], () => context.reject());
    });
  };
  const execute = async (line: string, channel: ServerChannel) => {
    const { command, mark } = readCommand(line);
    commands.push(command);
    const end = (code: number) => {
      channel.exit(code);
      channel.end();
    };
    const input = answer ? await text(channel) : undefined;
    const said = answer?.(command, input ?? '');
    if (said !== undefined) {
      channel.write(printed(mark, said));
      return end(0);
    }
    const [program = 'sh', ...rest] = shell;
    const child = spawn(program, [...rest, line], { env, stdio: 'pipe' });
    children.add(child);
    // A command may end before it has read all of its input.
    child.stdin.on('error', () => undefined);
    if (input === undefined) channel.pipe(child.stdin);
    else child.stdin.end(input);
    child.stdout.pipe(channel, { end: false });
    child.stderr.pipe(channel.stderr, { end: false });
    child.once('error', () => end(127));
    // As sshd does: the shell may end before what it has left running closes its outputs.
    child.once('exit', (code) => channel.exit(code ?? 255));
    child.once('close', () => {
      children.delete(child);
      channel.end();
    });
  };

  const server = new ssh2.Server({ hostKeys: [key.private] }, (connection) => {
    connections.add(connection);
    connection.on('error', () => undefined).once('close', () => connections.delete(connection));
    connection.on('authentication', authenticate);
    connection.on('session', (accept) =>
      accept().on('exec', (acceptExec, _reject, { command }) => void execute(command, acceptExec())),
    );
    if (takesForwards) connection.on('request', (acceptRequest) => acceptRequest?.());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const stop = async () => {
    for (const child of children) child.kill('SIGKILL');
    for (const connection of connections) connection.end();
    await new Promise<void>((resolve) => server.close(() => resolve()));
    await dir.remove();
  };
  return {
    port: (server.address() as AddressInfo).port,
    hostKey: key.public,
    commands,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
