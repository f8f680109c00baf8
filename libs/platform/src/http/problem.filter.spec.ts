import { AppError } from '@airdock/core/errors';
import { type ArgumentsHost, HttpException, Logger, NotFoundException } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { ProblemFilter, toAppError } from './problem.filter.js';

describe('an error of a request', () => {
  const logged = vi.spyOn(Logger.prototype, 'error').mockImplementation(() => undefined);
  const request = { method: 'GET', url: '/v1/things?token=secret', id: 'r1' } as FastifyRequest;
  const answer = (error: unknown, { headersSent = false } = {}) => {
    const headers: Record<string, unknown> = {};
    const sent = { status: 0, type: '', body: undefined as unknown, headers, destroy: vi.fn() };
    const reply = {
      sent: false,
      raw: { headersSent, destroy: sent.destroy },
      hasHeader: (name: string) => name in headers,
      header: (name: string, value: unknown) => ((headers[name] = value), reply),
      status: (status: number) => ((sent.status = status), reply),
      type: (type: string) => ((sent.type = type), reply),
      serializer: () => reply,
      send: (body: unknown) => (sent.body = body),
    };
    const http = { getRequest: () => request, getResponse: () => reply as unknown as FastifyReply };
    const filter = new ProblemFilter();
    const handle = filter.catch.bind(filter);
    handle(error, { switchToHttp: () => http } as unknown as ArgumentsHost);
    return sent;
  };

  beforeEach(() => void logged.mockClear());

  it('is a problem document that names the path without its query, and the request', () => {
    const { status, type, body } = answer(new AppError('resource_not_found', { detail: 'no thing' }));
    expect([status, type]).toEqual([404, 'application/problem+json']);
    expect(body).toMatchObject({ code: 'resource_not_found', instance: '/v1/things', requestId: 'r1' });
    expect(logged).not.toHaveBeenCalled();
  });

  it('says nothing of a bug but in the log', () => {
    const bug = new TypeError('password of postgres');
    const { status, body } = answer(bug);
    expect(status).toBe(500);
    expect(JSON.stringify(body)).not.toContain('password');
    expect(logged).toHaveBeenCalledExactlyOnceWith({ err: bug, requestId: 'r1' }, 'request failed');
  });

  it.each([
    ['dependency_unavailable', { 'retry-after': '5' }],
    ['rate_limited', { 'retry-after': '5' }],
    ['token_missing', { 'www-authenticate': 'Bearer' }],
    ['request_invalid', {}],
  ] as const)('%s says in its headers what the client can do', (code, headers) => {
    expect(answer(new AppError(code)).headers).toEqual(headers);
  });

  it('breaks an answer off that has begun: nobody takes half of it for the whole', () => {
    const { destroy, body } = answer(new AppError('registry_unavailable'), { headersSent: true });
    expect(destroy).toHaveBeenCalledOnce();
    expect(body).toBeUndefined();
    expect(request.problemCode).toBe('registry_unavailable');
  });

  it.each([
    [new NotFoundException('Cannot GET'), 'route_not_found', 'GET /v1/things'],
    [new HttpException('odd', 418), 'request_malformed', 'odd'],
    [Object.assign(new Error('too large'), { statusCode: 413 }), 'payload_too_large', 'too large'],
    [Object.assign(new Error('x'.repeat(900)), { statusCode: 400 }), 'request_malformed', 'x'.repeat(500)],
    [Object.assign(new Error('secret'), { statusCode: 502 }), 'internal_error', undefined],
  ])('of the framework is said in words of Airdock: %o', (error, code, detail) => {
    expect(toAppError(error, request)).toMatchObject({ code, ...(detail && { details: { detail } }) });
  });
});
