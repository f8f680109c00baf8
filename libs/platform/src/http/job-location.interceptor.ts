import type { CallHandler, ExecutionContext, NestInterceptor } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { type Observable, tap } from 'rxjs';

/** An accepted job is found at its `Location`. */
export class JobLocationInterceptor implements NestInterceptor {
  intercept(context: ExecutionContext, next: CallHandler): Observable<unknown> {
    const reply = context.switchToHttp().getResponse<FastifyReply>();
    return next.handle().pipe(
      tap((body: { id?: string } | undefined) => {
        if (reply.statusCode !== 202 || !body?.id) return;
        void reply.header('location', `/v1/jobs/${body.id}`);
        context.switchToHttp().getRequest<FastifyRequest>().createdJobId = body.id;
      }),
    );
  }
}
