import { AppError } from '@airdock/core/errors';
import { type CanActivate, type ExecutionContext, Injectable } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { TokenFile } from '../token-file.js';
import type { Principal } from './access.js';
import { FailedLogins } from './failed-logins.js';
import { sendProblem } from './problem.filter.js';

interface TokenHeaders {
  authorization?: string | undefined;
  'x-auth-token'?: string | string[] | undefined;
}

/** Finds out who asks, before any byte of a body is read. */
@Injectable()
export class Authentication {
  constructor(
    private readonly admin: TokenFile,
    private readonly internal: TokenFile,
    private readonly failures: FailedLogins,
  ) {}

  /** Lets a request go on, with its `principal` set, or answers it. */
  async admit(request: FastifyRequest, reply: FastifyReply, isLocal: boolean): Promise<void> {
    const { access } = request.routeOptions.config;
    if (access === 'public') return;
    const isDocumentation = isDocumentationRoute(request);
    try {
      request.principal = this.identify(request.headers, isLocal, isDocumentation);
    } catch (error) {
      const known = error as AppError;
      const outcome = await this.failures.count(request.from, known.code);
      if (outcome === 'drop') {
        reply.hijack();
        request.raw.destroy();
        return;
      }
      if (isDocumentation) void reply.header('www-authenticate', 'Basic realm="Airdock: the token is the password"');
      sendProblem(
        request,
        reply,
        outcome === 'answer' ? known : new AppError('login_slowed', { detail: request.from }),
      );
      await reply;
      return;
    }
    if (access !== 'internal' || request.principal === 'internal') return;
    sendProblem(request, reply, new AppError('route_internal'));
    await reply;
  }

  /**
   * By the token, or by the Unix socket, which only administrators can open. A wrong token is refused on the socket
   * too, where whoever shows it believes to need it. The documents take the token as the password of HTTP Basic as
   * well, which is what a browser can ask for. Throws `token_missing`, `token_invalid`.
   */
  private identify(headers: TokenHeaders, isLocal: boolean, isBrowser: boolean): Principal {
    const token = bearer(headers) ?? (isBrowser ? basicPassword(headers) : undefined);
    if (token === undefined || token === '') {
      if (isLocal && headers.authorization === undefined) return 'local';
      throw new AppError('token_missing');
    }
    // Both are always compared, so that the time tells nothing.
    const [isAdmin, isInternal] = [this.admin.matches(token), this.internal.matches(token)];
    if (isInternal) return 'internal';
    if (isAdmin) return 'admin';
    throw new AppError('token_invalid');
  }
}

/** By the route, not by the text of the URL, which can be written in many ways. */
export const isDocumentationRoute = (request: FastifyRequest): boolean =>
  /^\/(docs|openapi\.json)/.test(request.routeOptions.url ?? '');

function bearer(headers: TokenHeaders): string | undefined {
  const token = /^Bearer ([^\s]+)$/i.exec(headers.authorization ?? '')?.[1] ?? headers['x-auth-token'];
  return typeof token === 'string' ? token : undefined;
}

function basicPassword({ authorization }: TokenHeaders): string | undefined {
  const basic = /^Basic ([A-Za-z0-9+/=]+)$/i.exec(authorization ?? '')?.[1];
  return basic === undefined
    ? undefined
    : Buffer.from(basic, 'base64')
        .toString()
        .replace(/^[^:]*:/, '');
}

/** Nothing gets to a handler past `Authentication`, whichever way a route was made. */
@Injectable()
export class AuthGuard implements CanActivate {
  canActivate(context: ExecutionContext): boolean {
    const request = context.switchToHttp().getRequest<FastifyRequest>();
    if (request.principal === 'anonymous' && request.routeOptions.config.access !== 'public')
      throw new AppError('token_missing');
    return true;
  }
}
