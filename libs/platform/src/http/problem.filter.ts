import { AppError, type ErrorCode, toProblem } from '@airdock/core/errors';
import { type ArgumentsHost, Catch, type ExceptionFilter, HttpException, Logger } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { translateDatabaseError } from '../database.js';

const codeByStatus: Record<number, ErrorCode> = {
  400: 'request_malformed',
  404: 'route_not_found',
  405: 'route_not_found',
  413: 'payload_too_large',
  415: 'media_type_unsupported',
  422: 'request_invalid',
  429: 'rate_limited',
};

/** The framework's own errors (unknown route, bad JSON, body too large) in our words; anything unknown stays internal. */
function toAppError(error: unknown, request: FastifyRequest): AppError {
  if (error instanceof AppError) return error;
  const status = error instanceof HttpException ? error.getStatus() : (error as { statusCode?: number }).statusCode;
  const code = status ? codeByStatus[status] : undefined;
  if (!code) return new AppError('internal_error', {}, { cause: error });
  const detail = code === 'route_not_found' ? `${request.method} ${request.url.split('?')[0]}` : (error as Error).message;
  return new AppError(code, { detail: detail.slice(0, 500) }, { cause: error });
}

/** Every error leaves as `application/problem+json` (RFC 9457), with the request's id to find it in the log. */
@Catch()
export class ProblemFilter implements ExceptionFilter {
  private readonly logger = new Logger('http');

  catch(error: unknown, host: ArgumentsHost): void {
    const request = host.switchToHttp().getRequest<FastifyRequest>();
    const reply = host.switchToHttp().getResponse<FastifyReply>();
    const known = toAppError(translateDatabaseError(error), request);
    if (known.family === 'internal') this.logger.error({ err: known.cause ?? known, requestId: request.id }, 'request failed');
    if (reply.sent || reply.raw.headersSent) {
      reply.raw.destroy();
      return;
    }
    if (known.status === 401) void reply.header('www-authenticate', 'Bearer');
    if (known.status === 503) void reply.header('retry-after', '5');
    void reply
      .status(known.status)
      .type('application/problem+json')
      .send({ ...toProblem(known), instance: request.url.split('?')[0], requestId: request.id });
  }
}
