import { AppError } from '@airdock/core/errors';
import {
  applyDecorators,
  type CallHandler,
  createParamDecorator,
  type ExecutionContext,
  Injectable,
  Logger,
  type NestInterceptor,
  UseInterceptors,
} from '@nestjs/common';
import { ApiHeader } from '@nestjs/swagger';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { from, mergeMap, type Observable, of } from 'rxjs';
import type { Repository } from 'typeorm';
import { isUniqueViolation, now, ServiceDatabase } from '../database.js';
import { idOf, newId } from '../ids.js';
import { SecretBox } from '../secrets.js';
import { IdempotencyKeyEntity } from './idempotency.entity.js';

const keptHeaders = ['location', 'etag'];
/** After this time a request without an answer counts as lost with its process, and may be repeated. */
const abandonedMs = 60_000;

const keyOf = (request: FastifyRequest): string | undefined => {
  const key = request.headers['idempotency-key'];
  if (key === undefined) return undefined;
  if (typeof key !== 'string' || !/^[\x21-\x7e]{1,200}$/.test(key))
    throw new AppError('request_invalid', { detail: 'Idempotency-Key must be 1 to 200 printable characters' });
  return idOf(`${request.method} ${request.url.split('?')[0]} ${key}`);
};

/** The job that a request will create. */
/** What a request that starts a job is known by. */
export interface JobRequest {
  id: string;
  /**
   * From the Idempotency-Key: a request repeated after a crash between the commit and the answer finds the job of the
   * first.
   */
  requestKey: string | null;
  /** Who asked for it: `admin`, `local`, `internal`. */
  createdBy?: string;
}

export const JobRequest = createParamDecorator((_: unknown, context: ExecutionContext): JobRequest => {
  const request = context.switchToHttp().getRequest<FastifyRequest>();
  return { id: newId(), requestKey: keyOf(request) ?? null, createdBy: request.principal };
});

/** Answers a repeated POST with the first one's answer. */
@Injectable()
export class IdempotencyInterceptor implements NestInterceptor {
  private readonly logger = new Logger(IdempotencyInterceptor.name);

  constructor(
    private readonly database: ServiceDatabase,
    private readonly secrets: SecretBox,
  ) {}

  async intercept(context: ExecutionContext, next: CallHandler): Promise<Observable<unknown>> {
    const request = context.switchToHttp().getRequest<FastifyRequest>();
    const reply = context.switchToHttp().getResponse<FastifyReply>();
    const id = keyOf(request);
    if (!id) return next.handle();
    const keys = this.database.dataSource.getRepository(IdempotencyKeyEntity);
    const text = JSON.stringify(request.body ?? null);
    const first = await this.begin(keys, id, text);
    if (first) {
      void reply.status(first.status).headers({ ...first.headers, 'idempotent-replayed': 'true' });
      return of(first.body === null ? undefined : JSON.parse(this.secrets.open(first.body, id)));
    }
    const run = async (): Promise<unknown> => {
      let body: unknown;
      try {
        body = await new Promise((resolve, reject) => {
          let value: unknown;
          next.handle().subscribe({ next: (item) => (value = item), error: reject, complete: () => resolve(value) });
        });
      } catch (error) {
        // A refused request may be corrected and sent again with the same key.
        await keys
          .delete({ id })
          .catch((cause: unknown) =>
            this.logger.warn({ err: cause }, 'the key of a refused request is given back in a minute'),
          );
        throw error;
      }
      try {
        const headers = Object.fromEntries(
          keptHeaders.flatMap((name) => (reply.getHeader(name) ? [[name, String(reply.getHeader(name))]] : [])),
        );
        await keys.update(
          { id },
          {
            status: reply.statusCode,
            headers,
            // An answer may hold a secret that is shown once.
            body: body === undefined ? null : this.secrets.seal(JSON.stringify(body), id),
          },
        );
      } catch (error) {
        // It was done, and its answer is the true one: on a full disk the key cannot keep it. A job knows its key.
        this.logger.warn({ err: error }, 'an answer could not be kept for its Idempotency-Key');
      }
      return body;
    };
    return from([null]).pipe(mergeMap(run));
  }

  /**
   * Takes the key for this request, or finds the answer that it had. Throws `idempotency_key_reused`,
   * `idempotency_key_running`. The digest of the request is a keyed one: a request may hold a password, which nobody
   * shall find by trying.
   */
  private async begin(keys: Repository<IdempotencyKeyEntity>, id: string, text: string): Promise<Answered | undefined> {
    const requestDigest = this.secrets.digest(text);
    // Between two looks the first request may be refused, which gives its key back.
    for (let attempt = 0; attempt < 5; attempt++) {
      try {
        await keys.insert({ id, requestDigest, createdAt: now(), status: null, headers: null, body: null });
        return undefined;
      } catch (error) {
        if (!isUniqueViolation(error)) throw error;
      }
      const first = await keys.findOneBy({ id });
      if (!first) continue;
      // What another key of ours has made cannot be compared any more.
      if (!first.requestDigest.startsWith(this.secrets.digestPrefix)) {
        await keys.delete({ id, requestDigest: first.requestDigest });
        continue;
      }
      if (first.requestDigest !== requestDigest) throw new AppError('idempotency_key_reused');
      if (first.status !== null) return { status: first.status, headers: first.headers, body: first.body };
      if (Date.now() - Date.parse(first.createdAt) < abandonedMs) throw new AppError('idempotency_key_running');
      return undefined;
    }
    throw new AppError('idempotency_key_running');
  }
}

type Answered = Pick<IdempotencyKeyEntity, 'headers' | 'body'> & { status: number };

/** Marks a POST that creates something: it honours `Idempotency-Key`. */
export const Idempotent = () =>
  applyDecorators(
    UseInterceptors(IdempotencyInterceptor),
    ApiHeader({
      name: 'Idempotency-Key',
      required: false,
      description: 'A repeated request with the same key gets the first answer again',
      schema: { type: 'string' },
    }),
  );
