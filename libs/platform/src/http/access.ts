import { applyDecorators } from '@nestjs/common';
import { FASTIFY_ROUTE_CONFIG_METADATA } from '@nestjs/platform-fastify/constants';
import { ApiSecurity } from '@nestjs/swagger';

/**
 * Who asks. `admin` showed the API token, `local` came by the API's Unix socket, `internal` is a service of Airdock.
 * Without any of them: health only.
 */
export type Principal = 'admin' | 'local' | 'internal' | 'anonymous';

/** What a route says of itself before its handler runs; Fastify hands it to hooks that run before a body is read. */
export interface RouteAccess {
  /** Default: operators and services. */
  access?: 'public' | 'internal';
  /** In the OpenAPI document and the journal. */
  operationId?: string;
  /** Its request body goes to a file as it comes: it may take long, as long as it moves. */
  streamsBody?: boolean;
  /** Its answer stays open: only so many at once for each client. */
  streamsAnswer?: boolean;
}

declare module 'fastify' {
  interface FastifyContextConfig extends RouteAccess {}
  interface FastifyRequest {
    principal: Principal;
    /** The client's address, or `socket`; never what a header says. */
    from: string;
    /** Of the problem that it was answered with. */
    problemCode: string | null;
    /** Of the job that it created. */
    createdJobId: string | null;
  }
}

/** Adds to what a route says of itself; several decorators may. */
export const routeAccess =
  (access: RouteAccess): MethodDecorator =>
  (_target, _name, descriptor) => {
    const handler = descriptor.value as object;
    const known = (Reflect.getMetadata(FASTIFY_ROUTE_CONFIG_METADATA, handler) ?? {}) as RouteAccess;
    Reflect.defineMetadata(FASTIFY_ROUTE_CONFIG_METADATA, { ...known, ...access }, handler);
  };

/** Marks a route that needs no token: health only. */
export const Public = () => routeAccess({ access: 'public' });

/**
 * Marks a route that only services call, with a credential of their own: not the operators' token, not the Unix socket.
 */
export const Internal = () => applyDecorators(routeAccess({ access: 'internal' }), ApiSecurity('internal'));

/** Marks a route whose body is streamed to a file. */
export const StreamedBody = () => routeAccess({ streamsBody: true });

/** Marks a route whose answer stays open. */
export const StreamedAnswer = () => routeAccess({ streamsAnswer: true });
