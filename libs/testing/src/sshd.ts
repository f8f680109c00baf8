/** A real OpenSSH server on loopback, for tests of connections and tunnels that need no host of their own. */
import { execFile } from 'node:child_process';
import { appendFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type CrashableServer, findProgram, freePort, ServerProcess, tempDir } from './servers.js';

const run = promisify(execFile);

export interface Sshd extends CrashableServer {
  port: number;
  /** Who may log in: the user that runs the tests. */
  user: string;
  /** Opens the login. */
  privateKey: string;
  /** A key that opens nothing. */
  otherPrivateKey: string;
  /** Lines of the server's public keys. */
  hostKeys: { ed25519: string; ecdsa: string; rsa: string };
  /** A new key that opens the login as well, as `ssh-keygen` writes it with these further arguments. */
  authorizedKey(...args: string[]): Promise<string>;
  /** Puts options before the key that opens the login: see sshd(8). */
  restrictKey(options: string): Promise<void>;
}

/**
 * Starts sshd with fresh host keys; only the returned key may log in. `settings` are lines of its configuration that go
 * before all others.
 */
export async function startSshd(settings: string[] = []): Promise<Sshd> {
  const dir = await tempDir('sshd');
  const keygen = async (name: string, ...args: string[]) => {
    await run('ssh-keygen', [
      '-q',
      '-C',
      name,
      '-f',
      join(dir.path, name),
      ...(args.includes('-N') ? [] : ['-N', '']),
      ...args,
    ]);
    return {
      private: await readFile(join(dir.path, name), 'utf8'),
      public: (await readFile(join(dir.path, `${name}.pub`), 'utf8')).trim(),
    };
  };
  const [ed25519, ecdsa, rsa, login, other] = await Promise.all([
    keygen('host-ed25519', '-t', 'ed25519'),
    keygen('host-ecdsa', '-t', 'ecdsa'),
    keygen('host-rsa', '-t', 'rsa', '-b', '2048'),
    keygen('login', '-t', 'ed25519'),
    keygen('other', '-t', 'ed25519'),
  ]);
  await writeFile(join(dir.path, 'authorized_keys'), `${login.public}\n`);
  const port = await freePort();
  const config = [
    ...settings,
    `ListenAddress 127.0.0.1:${port}`,
    `HostKey ${join(dir.path, 'host-ed25519')}`,
    `HostKey ${join(dir.path, 'host-ecdsa')}`,
    `HostKey ${join(dir.path, 'host-rsa')}`,
    `AuthorizedKeysFile ${join(dir.path, 'authorized_keys')}`,
    'PidFile none',
    'StrictModes no',
    'UsePAM no',
    'PasswordAuthentication no',
    'PermitRootLogin yes',
    'AllowTcpForwarding yes',
    // What the login shell of the one who runs the tests does at its start is no matter of ours, and may take seconds.
    `SetEnv HOME=${dir.path}`,
  ];
  await writeFile(join(dir.path, 'sshd_config'), `${config.join('\n')}\n`);
  // sshd's own condition for starting as root.
  if (userInfo().uid === 0) await mkdir('/run/sshd', { recursive: true });
  const ready = async () => true;
  const program = findProgram('sshd', ['/usr/sbin']);
  if (!program) throw new Error('the Debian package openssh-server is missing');
  const server = new ServerProcess({ program, args: ['-D', '-e', '-f', join(dir.path, 'sshd_config')], port, ready });
  await server.start();
  let count = 0;
  const stop = async () => {
    await server.end();
    await dir.remove();
  };
  return {
    url: `ssh://127.0.0.1:${port}`,
    port,
    user: userInfo().username,
    privateKey: login.private,
    otherPrivateKey: other.private,
    hostKeys: { ed25519: ed25519.public, ecdsa: ecdsa.public, rsa: rsa.public },
    authorizedKey: async (...args) => {
      const key = await keygen(`login-${++count}`, ...args);
      await appendFile(join(dir.path, 'authorized_keys'), `${key.public}\n`);
      return key.private;
    },
    restrictKey: (options) => writeFile(join(dir.path, 'authorized_keys'), `${options} ${login.public}\n`),
    stop,
    kill: async () => {
      // As when the host goes away: the server, and its children that serve the open connections.
      const children = await run('pgrep', ['-P', String(server.pid)]).then(
        ({ stdout }) => stdout.trim().split('\n').map(Number),
        () => [],
      );
      await server.end('SIGKILL');
      for (const pid of children) process.kill(pid, 'SIGKILL');
    },
    restart: async () => {
      await server.end();
      await server.start();
    },
    [Symbol.asyncDispose]: stop,
  };
}
