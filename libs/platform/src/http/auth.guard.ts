import { createHash, timingSafeEqual } from 'node:crypto';
import { AppError } from '@airdock/core/errors';
import { type CanActivate, type ExecutionContext, Injectable, SetMetadata } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import type { FastifyRequest } from 'fastify';

const PUBLIC = 'airdock:public';

/** Marks a route that needs no token: health only. */
export const Public = () => SetMetadata(PUBLIC, true);

const sha256 = (text: string) => createHash('sha256').update(text).digest();

interface TokenHeaders {
  authorization?: string | undefined;
  'x-auth-token'?: string | string[] | undefined;
}

/** The API token, compared in constant time. */
export class TokenVerifier {
  private readonly digest: Buffer;

  constructor(token: string) {
    this.digest = sha256(token);
  }

  /** Throws `token_missing` or `token_invalid`. */
  verify(headers: TokenHeaders): void {
    this.check(/^Bearer ([^\s]+)$/i.exec(headers.authorization ?? '')?.[1] ?? headers['x-auth-token']);
  }

  /** As `verify`; the token may also be the password of HTTP Basic authentication, which is what a browser can ask for. */
  verifyForBrowser(headers: TokenHeaders): void {
    const basic = /^Basic ([A-Za-z0-9+/=]+)$/i.exec(headers.authorization ?? '')?.[1];
    if (basic === undefined) this.verify(headers);
    else
      this.check(
        Buffer.from(basic, 'base64')
          .toString()
          .replace(/^[^:]*:/, ''),
      );
  }

  private check(token: string | string[] | undefined): void {
    if (typeof token !== 'string' || token === '') throw new AppError('token_missing');
    if (!timingSafeEqual(sha256(token), this.digest)) throw new AppError('token_invalid');
  }
}

@Injectable()
export class AuthGuard implements CanActivate {
  constructor(
    private readonly reflector: Reflector,
    private readonly tokens: TokenVerifier,
  ) {}

  canActivate(context: ExecutionContext): boolean {
    if (this.reflector.getAllAndOverride<boolean>(PUBLIC, [context.getHandler(), context.getClass()])) return true;
    this.tokens.verify(context.switchToHttp().getRequest<FastifyRequest>().headers);
    return true;
  }
}
