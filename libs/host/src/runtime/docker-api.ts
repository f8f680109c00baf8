import { type IncomingHttpHeaders, type IncomingMessage, request } from 'node:http';
import { AppError } from '@airdock/core/errors';
import { BoundedOutput } from '@airdock/ssh/command/command-output';
import { deadlineOf, defaultStallMs } from '@airdock/ssh/command/command-time';
import type { SshConnection } from '@airdock/ssh/connection/connection';

const dockerSocket = '/var/run/docker.sock';
/** Of what is kept of an answer, and of one line: a host may send anything. */
const maxAnswerBytes = 4 * 1024 * 1024;
const maxLineLength = 256 * 1024;

/** How a request to the Docker engine of a host is made. */
export interface DockerRequest {
  signal?: AbortSignal | undefined;
  /** Ends the request when nothing comes for this long. Default 120 000. */
  stallTimeoutMs?: number;
  /** Gets each line of a successful answer, which is then not kept: one of at most 256 Ki characters. */
  onLine?: (line: string) => void;
}

/** What a Docker engine has answered. */
export interface DockerAnswer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}

/**
 * One request to Docker's API on a host (https://docs.docker.com/reference/api/engine/), through an SSH channel to its
 * socket: it answers in a millisecond what its program, which has to be started there, answers in thirty. Undefined
 * where there is no such way: the user is not root, sshd forbids it, Docker does not listen there. Throws
 * `host_unreachable`, `host_timeout`, `host_command_timeout`, `host_output_exceeded`, `host_buffer_exceeded`,
 * `host_command_failed` when Docker does not answer to the end, and the signal's reason.
 */
export async function askDocker(
  connection: SshConnection,
  method: 'GET' | 'POST',
  path: string,
  { signal, stallTimeoutMs = defaultStallMs, onLine }: DockerRequest = {},
): Promise<DockerAnswer | undefined> {
  // Through sudo there is only the program.
  if ((await connection.elevation(signal)) !== 'root') return undefined;
  const channel = await connection.forwardToSocket(dockerSocket);
  if (!channel) return undefined;
  const silence = new AbortController();
  const timer = setTimeout(
    () => silence.abort(new AppError('host_timeout', { detail: `Docker did nothing for ${stallTimeoutMs / 1000} s` })),
    stallTimeoutMs,
  );
  const timeMs = deadlineOf(stallTimeoutMs);
  const deadline = setTimeout(
    () => silence.abort(new AppError('host_command_timeout', { detail: `Docker after ${timeMs / 1000} s` })),
    timeMs,
  );
  const kept = new BoundedOutput(connection.buffers, maxAnswerBytes);
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const ended = AbortSignal.any([silence.signal, ...(signal ? [signal] : [])]);
      const asked = request({ method, path, host: 'docker', createConnection: () => channel, signal: ended }, resolve);
      asked.once('error', reject).end();
    });
    const status = response.statusCode ?? 0;
    if (onLine && status === 200) await readLines(response, onLine, () => timer.refresh());
    else
      for await (const chunk of response as AsyncIterable<Buffer>) {
        timer.refresh();
        kept.push(chunk);
      }
    return { status, headers: response.headers, body: kept.text() };
  } catch (cause) {
    signal?.throwIfAborted();
    if (silence.signal.aborted) throw silence.signal.reason;
    if (cause instanceof AppError) throw cause;
    // Tells a connection that broke from a Docker that did.
    await connection.roundTrip();
    throw new AppError(
      'host_command_failed',
      { detail: `Docker's API, ${path.split('?')[0]}: ${(cause as Error).message}` },
      { cause },
    );
  } finally {
    clearTimeout(timer);
    clearTimeout(deadline);
    kept.release();
    channel.destroy();
  }
}

/** Looks for the end of a line in what is new only: a long one comes in many pieces. */
async function readLines(response: IncomingMessage, onLine: (line: string) => void, touch: () => void): Promise<void> {
  let pieces: string[] = [];
  let length = 0;
  for await (const chunk of response.setEncoding('utf8') as AsyncIterable<string>) {
    touch();
    const lines = chunk.split('\n');
    for (const [index, piece] of lines.entries()) {
      length += piece.length;
      if (length > maxLineLength || pieces.length > maxLineLength / 16)
        throw new AppError('host_output_exceeded', {
          detail: `Docker: a line of more than ${maxLineLength} characters`,
        });
      pieces.push(piece);
      if (index === lines.length - 1) break;
      onLine(pieces.join(''));
      pieces = [];
      length = 0;
    }
  }
  if (length > 0) onLine(pieces.join(''));
}
