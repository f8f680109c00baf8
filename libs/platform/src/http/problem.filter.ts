import { AppError, type ErrorCode, toProblem } from '@airdock/core/errors';
import { type ArgumentsHost, Catch, type ExceptionFilter, HttpException, Logger } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { translateDatabaseError } from '../database.js';

const codeByStatus: Record<number, ErrorCode> = {
  400: 'request_malformed',
  404: 'route_not_found',
  405: 'method_not_allowed',
  408: 'request_timeout',
  413: 'payload_too_large',
  414: 'uri_too_long',
  415: 'media_type_unsupported',
  422: 'request_invalid',
  429: 'rate_limited',
  431: 'header_too_large',
};

const pathOf = (request: FastifyRequest): string => (request.url.split('?')[0] ?? '').slice(0, 500);

/**
 * The framework's own errors (unknown route, bad JSON, body too large) in our words; anything unknown stays internal.
 */
export function toAppError(error: unknown, request: FastifyRequest): AppError {
  const translated = translateDatabaseError(error);
  if (translated instanceof AppError) return translated;
  const status =
    translated instanceof HttpException ? translated.getStatus() : (translated as { statusCode?: number }).statusCode;
  // What else a framework blames the client for is a bad request.
  const code = status
    ? (codeByStatus[status] ?? (status >= 400 && status < 500 ? 'request_malformed' : undefined))
    : undefined;
  if (!code) return new AppError('internal_error', {}, { cause: translated });
  const detail = code === 'route_not_found' ? `${request.method} ${pathOf(request)}` : (translated as Error).message;
  return new AppError(code, { detail: detail.slice(0, 500) }, { cause: translated });
}

/**
 * Answers with a problem document (RFC 9457), with the request's id to find it in the log. `status` is for protocols
 * that have statuses of their own.
 */
export function sendProblem(
  request: FastifyRequest,
  reply: FastifyReply,
  error: AppError,
  status = error.status,
): void {
  request.problemCode = error.code;
  if (error.status === 401 && !reply.hasHeader('www-authenticate')) void reply.header('www-authenticate', 'Bearer');
  if (error.status === 503 || error.status === 429) void reply.header('retry-after', '5');
  void reply
    .status(status)
    .type('application/problem+json')
    .serializer(JSON.stringify)
    .send({ ...toProblem(error), status, instance: pathOf(request), requestId: request.id });
}

/** Every error leaves as `application/problem+json`. */
@Catch()
export class ProblemFilter implements ExceptionFilter {
  private readonly logger = new Logger('http');

  catch(error: unknown, host: ArgumentsHost): void {
    const request = host.switchToHttp().getRequest<FastifyRequest>();
    const reply = host.switchToHttp().getResponse<FastifyReply>();
    const known = toAppError(error, request);
    if (known.family === 'internal')
      this.logger.error({ err: known.cause ?? known, requestId: request.id }, 'request failed');
    if (reply.sent || reply.raw.headersSent) {
      request.problemCode = known.code;
      reply.raw.destroy();
      return;
    }
    sendProblem(request, reply, known);
  }
}
