/**
 * A plain SSH client for what the tests themselves do on hosts. What Airdock does there goes through its own client.
 */
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import ssh2 from 'ssh2';
import type { ExecResult, LabHost } from './host.js';

/** An SSH session as the host's user. Disposal ends it. */
export interface SshSession extends AsyncDisposable {
  /** Runs a command, with `input` as its standard input. `timeoutMs` defaults to 60 000. */
  exec(command: string, options?: { input?: Readable; timeoutMs?: number }): Promise<ExecResult>;
  end(): Promise<void>;
}

/** Logs in with the host's key pair; refuses a host key other than the pinned one. */
export async function openSsh(
  host: Pick<LabHost, 'address' | 'port' | 'user' | 'privateKey' | 'hostKey'>,
): Promise<SshSession> {
  const { address, port, user: username, privateKey } = host;
  const pinned = Buffer.from(host.hostKey.split(' ')[1] ?? '', 'base64');
  const client = new ssh2.Client();
  await new Promise<void>((resolve, reject) => {
    client.once('ready', resolve).once('error', reject);
    // Without the algorithm the server may show another of its keys.
    const algorithms = { serverHostKey: ['ssh-ed25519' as const] };
    client.connect({
      host: address,
      port,
      username,
      privateKey,
      algorithms,
      readyTimeout: 10_000,
      hostVerifier: (key: Buffer) => key.equals(pinned),
    });
  });
  client.on('error', () => client.destroy());
  const end = async () => {
    const closed = new Promise<void>((resolve) => client.once('close', () => resolve()));
    client.end();
    await closed;
  };
  return { exec: (command, options) => execOver(client, command, options), end, [Symbol.asyncDispose]: end };
}

async function execOver(
  client: ssh2.Client,
  command: string,
  { input, timeoutMs = 60_000 }: { input?: Readable; timeoutMs?: number } = {},
): Promise<ExecResult> {
  let exitCode = -1;
  let isClosed = () => undefined as unknown;
  const closed = new Promise<void>((resolve) => {
    isClosed = () => resolve();
  });
  // Its end may be in the same packet as its beginning: whoever listens later misses it.
  const channel = await new Promise<ssh2.ClientChannel>((resolve, reject) => {
    client.exec(command, (error, opened) => {
      if (error) return reject(error);
      opened.once('exit', (code: number | null) => {
        exitCode = code ?? -1;
      });
      opened.once('close', isClosed);
      resolve(opened);
    });
  });
  const output = { stdout: '', stderr: '' };
  channel.setEncoding('utf8').on('data', (chunk: string) => {
    output.stdout += chunk;
  });
  channel.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    output.stderr += chunk;
  });
  const ended = new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no end after ${timeoutMs} ms: ${command}`)), timeoutMs);
    void closed.then(() => {
      clearTimeout(timer);
      resolve();
    });
  });
  // A command that ends before it has read all of its input is no error of the connection: its exit code tells.
  const sent = input ? pipeline(input, channel).catch(() => undefined) : channel.end();
  await Promise.all([ended, sent]);
  return { ...output, exitCode };
}
