import { AppError, toProblem } from '@airdock/core/errors';
import {
  StandardSchemaSerializerInterceptor,
  StandardSchemaValidationPipe,
  type Type,
  VersioningType,
} from '@nestjs/common';
import { NestFactory, Reflector } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import { DocumentBuilder, type OpenAPIObject, SwaggerModule } from '@nestjs/swagger';
import type { FastifyReply, FastifyServerFactoryHandler, FastifyServerOptions } from 'fastify';
import { Logger } from 'nestjs-pino';
import { newId } from '../ids.js';
import { installHooks } from './hooks.js';
import { JobLocationInterceptor } from './job-location.interceptor.js';
import { ProblemFilter } from './problem.filter.js';
import { Servers } from './servers.js';
import { assertNoNul } from './text.js';

const bodyLimitBytes = 1024 * 1024;
const defaultLimits = { maxConnections: 1024, maxConnectionsPerAddress: 256, headerTimeoutSeconds: 20 };

/** How an application answers HTTP. */
export interface HttpAppOptions {
  /** Of the OpenAPI document. */
  title: string;
  /** Build the document only: nothing is connected or started. */
  preview?: boolean;
  /** Its servers, with their bounds. */
  servers?: Servers;
}

/**
 * The Nest application of a root module, with everything that is the same for each: validation, problems, versions,
 * documents. Not listening yet.
 */
export async function createHttpApp(
  module: Type,
  { title, preview = false, servers = new Servers(defaultLimits) }: HttpAppOptions,
): Promise<NestFastifyApplication> {
  const adapter = new FastifyAdapter({
    bodyLimit: bodyLimitBytes,
    genReqId: () => newId(),
    forceCloseConnections: true,
    frameworkErrors,
    serverFactory: (handler: FastifyServerFactoryHandler) => servers.create(handler),
    // The servers answer those themselves, TCP and Unix socket alike.
    clientErrorHandler: () => undefined,
  });
  const app = await NestFactory.create<NestFastifyApplication>(module, adapter, {
    bufferLogs: !preview,
    // A start that fails is told by its error alone.
    autoFlushLogs: false,
    abortOnError: false,
    preview,
    logger: preview ? false : undefined,
  });
  if (!preview) app.useLogger(quietLogger(app.get(Logger)));
  app.flushLogs();
  acceptEmptyJson(app);
  if (!preview) installHooks(app, servers);
  app.enableVersioning({ type: VersioningType.URI });
  app.useGlobalFilters(new ProblemFilter());
  app.useGlobalInterceptors(
    new JobLocationInterceptor(),
    new StandardSchemaSerializerInterceptor(app.get(Reflector, { strict: false })),
  );
  app.useGlobalPipes(
    new StandardSchemaValidationPipe({
      exceptionFactory: (found) => {
        const issues = found.map(({ path, message }) => ({
          path: (path ?? []).map((part) => String(typeof part === 'object' ? part.key : part)).join('.'),
          message,
        }));
        const detail = issues.map(({ path, message }) => (path ? `${path}: ${message}` : message)).join('; ');
        return new AppError('request_invalid', { detail: detail.slice(0, 1000), issues: issues.slice(0, 50) });
      },
    }),
  );
  if (!preview) {
    const document = openApiDocument(app, title);
    app
      .getHttpAdapter()
      .getInstance()
      .get('/openapi.json', async () => document);
    SwaggerModule.setup('docs', app, document, { customSiteTitle: title, raw: false });
  }
  return app;
}

const quietContexts = ['InstanceLoader', 'RoutesResolver', 'RouterExplorer', 'NestFactory', 'NestApplication'];

/** Without the framework's hundred lines about modules and routes at each start. */
function quietLogger(logger: Logger): Logger {
  const log = logger.log.bind(logger);
  logger.log = (message: unknown, ...rest: unknown[]) => {
    if (!quietContexts.includes(String(rest.at(-1)))) log(message, ...(rest as []));
  };
  return logger;
}

/** URLs that the router itself cannot read never get to our filters. */
const frameworkErrors: NonNullable<FastifyServerOptions['frameworkErrors']> = (error, _request, reply) => {
  const problem = toProblem(
    new AppError(error.statusCode === 414 ? 'uri_too_long' : 'request_malformed', {
      detail: error.message.slice(0, 200),
    }),
  );
  const answer = reply as unknown as FastifyReply;
  void answer
    .status(problem.status)
    .type('application/problem+json')
    .header('connection', 'close')
    .send(JSON.stringify(problem));
};

/**
 * Clients that always send a content type may post without a body, e.g. to cancel a job. Everything else is parsed as
 * Fastify does; a text with a NUL is none that a database takes, wherever it stands.
 */
function acceptEmptyJson(app: NestFastifyApplication): void {
  const parse = app.getHttpAdapter().getInstance().getDefaultJsonParser('error', 'error');
  app.useBodyParser('application/json', { bodyLimit: bodyLimitBytes }, (request, body, done) => {
    if (body.length === 0) return done(null, undefined);
    const text = body.toString();
    void parse(request as never, text, (error, value) => {
      if (error) return done(error);
      try {
        assertNoNul(text, value);
        done(null, value);
      } catch (refusal) {
        done(refusal as Error);
      }
    });
  });
}

/** The OpenAPI 3.0.3 document of an application, generated from its controllers and schemas. */
export function openApiDocument(app: NestFastifyApplication, title: string): OpenAPIObject {
  const info = new DocumentBuilder()
    .setTitle(title)
    .setDescription(
      'The local image registry of an air-gapped Kubernetes site. Errors are problem documents (RFC 9457) with a stable `code` and a `nextStep`.',
    )
    .setVersion('1')
    .setLicense('Apache-2.0', 'https://www.apache.org/licenses/LICENSE-2.0')
    .setOpenAPIVersion('3.0.3')
    .addServer('/')
    .addSecurity('token', { type: 'http', scheme: 'bearer' })
    .addSecurity('internal', {
      type: 'http',
      scheme: 'bearer',
      description: 'The credential that only the services of Airdock have',
    })
    .addSecurityRequirements('token')
    .build();
  const document = SwaggerModule.createDocument(app, info, { ignoreGlobalPrefix: false });
  for (const path of Object.values(document.paths)) {
    for (const operation of Object.values(path) as {
      responses?: Record<string, { content?: Record<string, unknown> }>;
    }[]) {
      for (const family of ['4XX', '5XX']) {
        const problem = operation.responses?.[family];
        const json = problem?.content?.['application/json'];
        if (problem && json) problem.content = { 'application/problem+json': json };
      }
    }
  }
  // OpenAPI 3.0 wants a type beside `nullable`; zod's converter leaves it out where a nullable schema is a reference.
  for (const schema of Object.values(document.components?.schemas ?? {})) {
    for (const property of Object.values('properties' in schema ? (schema.properties ?? {}) : {})) {
      if ('nullable' in property && 'allOf' in property) property.type ??= 'object';
    }
  }
  return document;
}
