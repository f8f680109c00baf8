import { AppError } from '@airdock/core/errors';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { CONFIG, type Config } from '../config.js';
import { Authentication, isDocumentationRoute } from './authentication.js';
import { hasBodyToCome, watchBody } from './body-watch.js';
import { Journal } from './journal.js';
import { sendProblem } from './problem.filter.js';
import type { Servers } from './servers.js';
import { StreamLimits } from './stream-limits.js';
import { assertUrlWithoutNul } from './text.js';

/** Scripts and styles of the documents are files of their own; the page sets a few styles itself. */
const documentationPolicy =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const answerPolicy = "default-src 'none'; frame-ancestors 'none'";

/**
 * What is the same for every request, before its body is read and after it was answered. Before the routes are made.
 */
export function installHooks(app: NestFastifyApplication, servers: Servers): void {
  const fastify = app.getHttpAdapter().getInstance();
  const authentication = app.get(Authentication, { strict: false });
  const journal = app.get(Journal, { strict: false });
  const { http } = app.get<Config>(CONFIG, { strict: false });
  const streams = new StreamLimits();

  fastify.decorateRequest('principal', 'anonymous');
  fastify.decorateRequest('from', '');
  fastify.decorateRequest('problemCode', null);
  fastify.decorateRequest('createdJobId', null);

  fastify.addHook('onRequest', async (request: FastifyRequest, reply: FastifyReply): Promise<unknown> => {
    const isLocal = servers.isLocal(request.raw);
    request.from = isLocal ? 'socket' : (request.raw.socket.remoteAddress ?? 'unknown');
    setHeaders(request, reply);
    await authentication.admit(request, reply, isLocal);
    if (reply.sent) return;
    try {
      if (request.raw.headers.host === undefined && request.raw.httpVersion === '1.1')
        throw new AppError('request_malformed', { detail: 'there is no Host header' });
      assertUrlWithoutNul(request.url);
      if (request.routeOptions.config.streamsAnswer) streams.take(request, reply);
    } catch (error) {
      sendProblem(request, reply, error as AppError);
      return await reply;
    }
    watchBody(request, reply, http.bodyTimeoutSeconds * 1000);
    servers.invite(request.raw, reply.raw);
  });

  fastify.addHook('onSend', async (request: FastifyRequest, reply: FastifyReply) => {
    // What has not come of a refused body is not waited for.
    if (reply.statusCode >= 400 && hasBodyToCome(request)) void reply.header('connection', 'close');
  });

  fastify.addHook('preClose', async () => servers.closeLocally());

  fastify.addHook('onResponse', async (request: FastifyRequest, reply: FastifyReply) => journal.note(request, reply));
}

function setHeaders(request: FastifyRequest, reply: FastifyReply): void {
  void reply.headers({
    'x-request-id': request.id,
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    'referrer-policy': 'no-referrer',
    'content-security-policy': isDocumentationRoute(request) ? documentationPolicy : answerPolicy,
  });
}
