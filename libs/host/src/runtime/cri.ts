/**
 * The kubelet's way to images: `PullImage` of containerd's CRI (https://github.com/kubernetes/cri-api), which is gRPC
 * over its Unix socket. `ctr` goes another way: it reads neither containerd's configuration nor what that imports, and
 * works without a CRI. One call with one field needs no library for gRPC.
 */
import { type ClientHttp2Session, connect, constants } from 'node:http2';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { cleanLine } from '@airdock/core/host/host-text';
import { commandError } from '@airdock/ssh/command/command-error';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { scriptFunctions } from '../system/system-facts.js';

/** Where containerd answers CRI requests unless it is told otherwise. */
export const containerdSocket = '/run/containerd/containerd.sock';
/** containerd ends a pull itself that makes no progress for some minutes. */
const pullMs = 900_000;
/** An answer has less than a hundred. */
const maxAnswerBytes = 64 * 1024;
/** The older one is that of containerd before 1.6. */
const versions = ['v1', 'v1alpha2'];
/** Source: https://github.com/grpc/grpc/blob/master/doc/statuscodes.md */
const unimplemented = 12;

interface CallStatus {
  code: number;
  message: string;
}

// Prints the headers and trailers of a call, whose message comes on standard input; or lets crictl pull. 69: the host
// has neither.
const callScript = `${scriptFunctions}
socket=$1 image=$2 path=$3
if has crictl; then exec crictl --image-endpoint "unix://$socket" --runtime-endpoint "unix://$socket" --timeout 900s pull "$image" 2>&1; fi
if has curl && curl --version | grep -qw HTTP2; then
  exec curl -q -sS --noproxy '*' --http2-prior-knowledge --max-time 900 --unix-socket "$socket" -H 'content-type: application/grpc' -H 'te: trailers' -H 'expect:' \\
    --data-binary @- -D - -o /dev/null "http://localhost$path"
fi
exit 69`;

/**
 * Lets containerd pull as the kubelet does. False where there is no way to ask it: the user is not root, or sshd
 * forbids it, and the host has neither crictl nor a curl with HTTP/2. Throws `host_cri_unavailable`,
 * `host_pull_failed`, `host_disk_full`, and what breaks the connection.
 */
export async function pullByCri(connection: SshConnection, reference: string, signal: AbortSignal): Promise<boolean> {
  for (const version of versions) {
    const path = `/runtime.${version}.ImageService/PullImage`;
    const status =
      (await callByChannel(connection, path, reference, signal)) ??
      (await callByProgram(connection, path, reference, signal));
    if (!status) return false;
    if (status.code === 0) return true;
    if (status.code !== unimplemented)
      throw commandError('host_pull_failed', {
        detail: `${reference}: ${cleanLine(status.message, 2000).slice(-500)}`,
        reference,
      });
  }
  throw new AppError('host_cri_unavailable', { detail: 'containerd answers, and has no CRI' });
}

/** Through an SSH channel to containerd's socket. Undefined where there is no such way. */
async function callByChannel(
  connection: SshConnection,
  path: string,
  reference: string,
  signal: AbortSignal,
): Promise<CallStatus | undefined> {
  if ((await connection.elevation(signal)) !== 'root') return undefined;
  const channel = await connection.forwardToSocket(containerdSocket);
  if (!channel) return undefined;
  const session = connect('http://localhost', { createConnection: () => channel });
  const late = setTimeout(
    () => session.destroy(new AppError('host_command_timeout', { detail: `the CRI after ${pullMs / 1000} s` })),
    pullMs,
  );
  const abort = () => session.destroy(signal.reason as Error);
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await callOver(session, path, reference);
  } catch (cause) {
    signal.throwIfAborted();
    if (cause instanceof AppError) throw cause;
    // Tells a connection that broke from a containerd that did.
    await connection.roundTrip();
    throw new AppError(
      'host_pull_failed',
      { detail: `${reference}: containerd's CRI: ${cleanLine((cause as Error).message)}`, reference },
      { cause },
    );
  } finally {
    clearTimeout(late);
    signal.removeEventListener('abort', abort);
    session.destroy();
    channel.destroy();
  }
}

/** One call of the session. Rejects with what ends the session or the call before there is a status. */
function callOver(session: ClientHttp2Session, path: string, reference: string): Promise<CallStatus> {
  return new Promise((resolve, reject) => {
    session.once('error', reject).once('close', () => reject(new Error('the connection was closed')));
    const call = session.request({
      [constants.HTTP2_HEADER_METHOD]: 'POST',
      [constants.HTTP2_HEADER_PATH]: path,
      'content-type': 'application/grpc',
      te: 'trailers',
    });
    let answeredBytes = 0;
    // Of a call that fails at once the status is in the headers.
    const onStatus = ({ 'grpc-status': code, 'grpc-message': words }: Record<string, unknown>) => {
      if (code !== undefined) resolve({ code: Number(code), message: typeof words === 'string' ? decoded(words) : '' });
    };
    call
      .on('response', onStatus)
      .on('trailers', onStatus)
      .once('error', reject)
      .once('close', () => reject(new Error('an answer without a status')));
    call.on('data', (chunk: Buffer) => {
      answeredBytes += chunk.length;
      if (answeredBytes > maxAnswerBytes)
        session.destroy(new AppError('host_output_exceeded', { detail: `the CRI: more than ${maxAnswerBytes} bytes` }));
    });
    call.end(message(reference));
  });
}

async function callByProgram(
  connection: SshConnection,
  path: string,
  reference: string,
  signal: AbortSignal,
): Promise<CallStatus | undefined> {
  const stdin = Readable.from([message(reference)]);
  const options = { sudo: true, stdin, signal, stallTimeoutMs: pullMs, kind: 'work' as const };
  const { exitCode, stdout, stderr } = await connection.exec(
    ['sh', '-c', callScript, 'sh', containerdSocket, reference, path],
    options,
  );
  if (exitCode === 69) return undefined;
  const [, code] = /^grpc-status: *(\d{1,3})\r?$/im.exec(stdout) ?? [];
  if (code !== undefined)
    return { code: Number(code), message: decoded(/^grpc-message: *([^\r\n]{0,4000})/im.exec(stdout)?.[1] ?? '') };
  if (exitCode === 0 && !/^HTTP\//.test(stdout)) return { code: 0, message: '' };
  const words = (stderr || stdout).trim().slice(-2000);
  return {
    code: /code = Unimplemented|unknown service/.test(words) ? unimplemented : 2,
    message: words || `no answer (${exitCode})`,
  };
}

/**
 * `PullImageRequest { ImageSpec image = 1 { string image = 1 } }`, behind the five bytes that gRPC puts before a
 * message.
 */
function message(reference: string): Buffer {
  const field = (content: Buffer) => Buffer.concat([Buffer.from([0x0a]), varint(content.length), content]);
  const request = field(field(Buffer.from(reference)));
  const head = Buffer.alloc(5);
  head.writeUInt32BE(request.length, 1);
  return Buffer.concat([head, request]);
}

function varint(value: number): Buffer {
  return value < 0x80
    ? Buffer.from([value])
    : Buffer.concat([Buffer.from([(value & 0x7f) | 0x80]), varint(value >>> 7)]);
}

/** Percent-encoded, as far as it is. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text.slice(0, 4000));
  } catch {
    return text.slice(0, 4000);
  }
}
