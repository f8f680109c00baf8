import { request } from 'node:http';
import { connect, type Socket } from 'node:net';

export interface RawAnswer {
  status: number;
  headers: Record<string, string>;
  text: string;
  /** The JSON in it, if it is JSON. */
  json: { code?: string; [key: string]: unknown };
}

/** Parses what came on a connection. Status 0: nothing did. */
export function parseAnswer(text: string): RawAnswer {
  const [head = '', ...rest] = text.split('\r\n\r\n');
  const [line = '', ...lines] = head.split('\r\n');
  const headers = Object.fromEntries(
    lines.map((one) => [one.slice(0, one.indexOf(':')).toLowerCase(), one.slice(one.indexOf(':') + 1).trim()]),
  );
  const body = rest.join('\r\n\r\n');
  return { status: Number(/^HTTP\/1\.\d (\d+)/.exec(line)?.[1] ?? 0), headers, text: body, json: jsonIn(body) };
}

function jsonIn(text: string): RawAnswer['json'] {
  try {
    return JSON.parse(text.slice(text.indexOf('{'), text.lastIndexOf('}') + 1)) as RawAnswer['json'];
  } catch {
    return {};
  }
}

/** Connects, and sends these bytes. */
export function send(
  port: number,
  text: string,
  localAddress = '127.0.0.1',
): { socket: Socket; received: () => string; closed: Promise<void> } {
  const socket = connect({ host: '127.0.0.1', port, localAddress });
  let received = '';
  socket.on('data', (chunk: Buffer) => (received += chunk.toString('latin1'))).on('error', () => undefined);
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.write(text);
  return { socket, received: () => received, closed };
}

/** What a server answers to these bytes until it closes, or until `timeoutMs` have gone by. */
export async function exchange(
  port: number,
  text: string,
  timeoutMs = 10_000,
): Promise<RawAnswer & { isClosed: boolean }> {
  const { socket, received, closed } = send(port, text);
  let isClosed = false;
  await Promise.race([closed.then(() => (isClosed = true)), new Promise((resolve) => setTimeout(resolve, timeoutMs))]);
  socket.destroy();
  return { ...parseAnswer(received()), isClosed };
}

/** One request by a Unix socket. */
export function bySocket(
  socketPath: string,
  method: string,
  path: string,
  { headers = {}, body }: { headers?: Record<string, string>; body?: unknown } = {},
): Promise<RawAnswer> {
  return new Promise((resolve, reject) => {
    const sent = body === undefined ? undefined : JSON.stringify(body);
    const call = request(
      {
        socketPath,
        method,
        path,
        headers: { ...(sent === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
      },
      (answer) => {
        let text = '';
        answer.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
        answer
          .once('end', () =>
            resolve({
              status: answer.statusCode ?? 0,
              headers: answer.headers as Record<string, string>,
              text,
              json: jsonIn(text),
            }),
          )
          .once('error', reject);
      },
    );
    call.once('error', reject).end(sent);
  });
}
