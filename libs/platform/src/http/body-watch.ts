import { AppError, toProblem } from '@airdock/core/errors';
import type { FastifyReply, FastifyRequest } from 'fastify';

/** Between two looks at an upload. */
const lookMs = 5_000;
/** What has to come between them. */
const minBytesPerLook = 5 * 1024;

/** Whether a request has a body that has not come in full. */
export function hasBodyToCome({ raw }: FastifyRequest): boolean {
  const hasBody = raw.headers['transfer-encoding'] !== undefined || Number(raw.headers['content-length'] ?? 0) > 0;
  return hasBody && !raw.complete;
}

/**
 * Ends a request whose body does not come: as a whole within `timeoutMs`, or, where it is streamed to a file, when it
 * has hardly moved for as long. What waits for our own disk is not the client's fault.
 */
export function watchBody(request: FastifyRequest, reply: FastifyReply, timeoutMs: number): void {
  const { raw } = request;
  if (!hasBodyToCome(request)) return;
  const end = () => {
    stop();
    if (raw.complete || raw.destroyed) return;
    request.problemCode = 'request_timeout';
    if (reply.raw.headersSent) return void raw.destroy();
    const problem = toProblem(new AppError('request_timeout', { detail: 'the body did not come' }));
    reply.hijack();
    reply.raw.writeHead(problem.status, {
      'content-type': 'application/problem+json',
      connection: 'close',
      'x-request-id': request.id,
    });
    reply.raw.end(JSON.stringify({ ...problem, requestId: request.id }), () => raw.destroy());
  };
  const timer = request.routeOptions.config.streamsBody
    ? watchProgress(request, timeoutMs, end)
    : setTimeout(end, timeoutMs);
  timer.unref();
  const stop = () => {
    clearInterval(timer);
    raw.off('end', stop).off('close', stop);
  };
  raw.once('end', stop).once('close', stop);
}

function watchProgress({ raw }: FastifyRequest, timeoutMs: number, end: () => void): NodeJS.Timeout {
  let bytes = raw.socket.bytesRead;
  let movedAt = performance.now();
  return setInterval(
    () => {
      const isOurs = raw.isPaused() || raw.readableLength >= raw.readableHighWaterMark;
      if (isOurs || raw.socket.bytesRead - bytes >= minBytesPerLook) movedAt = performance.now();
      bytes = raw.socket.bytesRead;
      if (performance.now() - movedAt > timeoutMs) end();
    },
    Math.min(lookMs, timeoutMs / 2),
  );
}
