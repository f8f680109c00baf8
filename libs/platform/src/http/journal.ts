import { Inject, Injectable } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { type Logger, pino } from 'pino';
import { CONFIG, type Config } from '../config.js';

const readMethods = new Set(['GET', 'HEAD', 'OPTIONS']);
const maxLength = 300;

/**
 * What others have written, on one line, and without what a terminal would act on: control characters, and those that
 * turn the direction of writing.
 */
export const asLine = (text: string): string =>
  text.slice(0, maxLength).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, '\uFFFD');

/**
 * One line for every call that changes something, or was not allowed to: who, from where, what, on which object, with
 * which result. Nothing of bodies and no secret. It is written whatever the log level is; only `silent` silences it.
 */
@Injectable()
export class Journal {
  private readonly log: Logger;

  constructor(@Inject(CONFIG) { logLevel }: Config) {
    this.log = pino({ name: 'journal', level: logLevel === 'silent' ? 'silent' : 'info' });
  }

  /** After the answer. Refused tokens are told by `FailedLogins`, which bounds their number. */
  note(request: FastifyRequest, reply: FastifyReply): void {
    const { method, principal, from, id, problemCode, createdJobId } = request;
    const isRefused = reply.statusCode === 401 || reply.statusCode === 403 || reply.statusCode === 429;
    if (principal === 'anonymous' || (readMethods.has(method) && !isRefused)) return;
    const { config, url = '' } = request.routeOptions;
    this.log.info({
      who: principal,
      from: asLine(from),
      method: asLine(method),
      operation: config.operationId ?? asLine(url),
      object: asLine(request.url.split('?')[0] ?? ''),
      status: reply.statusCode,
      ...(problemCode ? { code: problemCode } : {}),
      requestId: id,
      ...(createdJobId ? { jobId: createdJobId } : {}),
      msg: 'call',
    });
  }
}
