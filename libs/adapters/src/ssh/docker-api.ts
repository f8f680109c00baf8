import { type IncomingHttpHeaders, type IncomingMessage, request } from 'node:http';
import { AppError } from '@airdock/core/errors';
import type { SshConnection } from './connection.js';

const dockerSocket = '/var/run/docker.sock';
/** Of what is kept of an answer: a host may send anything. */
const maxAnswerBytes = 16 * 1024 * 1024;

export interface DockerRequest {
  signal?: AbortSignal | undefined;
  /** Ends the request when nothing comes for this long. Default 120 000. */
  stallTimeoutMs?: number;
  /** Gets each line of a successful answer, which is then not kept. */
  onLine?: (line: string) => void;
}

export interface DockerAnswer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}

/**
 * One request to Docker's API on a host (https://docs.docker.com/reference/api/engine/), through an SSH channel to its socket: it answers in a millisecond what its
 * program, which has to be started there, answers in thirty. Undefined where there is no such way: the user is not root, sshd forbids it, Docker does not listen there.
 * Throws `host_unreachable`, `host_timeout`, `host_command_failed` when Docker does not answer to the end, and the signal's reason.
 */
export async function askDocker(
  connection: SshConnection,
  method: 'GET' | 'POST',
  path: string,
  { signal, stallTimeoutMs = 120_000, onLine }: DockerRequest = {},
): Promise<DockerAnswer | undefined> {
  // Through sudo there is only the program.
  if ((await connection.elevation(signal)) !== 'root') return undefined;
  const channel = await connection.forwardToSocket(dockerSocket);
  if (!channel) return undefined;
  const silence = new AbortController();
  const timer = setTimeout(() => silence.abort(), stallTimeoutMs);
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const ended = AbortSignal.any([silence.signal, ...(signal ? [signal] : [])]);
      const asked = request({ method, path, host: 'docker', createConnection: () => channel, signal: ended }, resolve);
      asked.once('error', reject).end();
    });
    const status = response.statusCode ?? 0;
    let body = '';
    for await (const chunk of response.setEncoding('utf8') as AsyncIterable<string>) {
      timer.refresh();
      body += chunk;
      if (onLine && status === 200) {
        const lines = body.split('\n');
        body = lines.pop() ?? '';
        for (const line of lines) onLine(line);
      }
      if (body.length > maxAnswerBytes) throw new Error(`printed more than ${maxAnswerBytes} bytes`);
    }
    if (onLine && status === 200 && body !== '') onLine(body);
    return { status, headers: response.headers, body };
  } catch (cause) {
    signal?.throwIfAborted();
    if (silence.signal.aborted) throw new AppError('host_timeout', { detail: `Docker did nothing for ${stallTimeoutMs / 1000} s` });
    // Tells a connection that broke from a Docker that did.
    await connection.roundTrip();
    throw new AppError('host_command_failed', { detail: `Docker's API, ${path.split('?')[0]}: ${(cause as Error).message}` }, { cause });
  } finally {
    clearTimeout(timer);
    channel.destroy();
  }
}
