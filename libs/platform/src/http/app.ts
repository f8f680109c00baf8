import { AppError, toProblem } from '@airdock/core/errors';
import { StandardSchemaSerializerInterceptor, StandardSchemaValidationPipe, type Type, VersioningType } from '@nestjs/common';
import { NestFactory, Reflector } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import { DocumentBuilder, type OpenAPIObject, SwaggerModule } from '@nestjs/swagger';
import type { FastifyReply, FastifyServerOptions } from 'fastify';
import { Logger } from 'nestjs-pino';
import { newId } from '../ids.js';
import { TokenVerifier } from './auth.guard.js';
import { JobLocationInterceptor } from './job-location.interceptor.js';
import { ProblemFilter } from './problem.filter.js';

const bodyLimitBytes = 1024 * 1024;

export interface HttpAppOptions {
  /** Of the OpenAPI document. */
  title: string;
  /** Build the document only: nothing is connected or started. */
  preview?: boolean;
}

/** The Nest application of a root module, with everything that is the same for each: validation, problems, versions, documents. Not listening yet. */
export async function createHttpApp(module: Type, { title, preview = false }: HttpAppOptions): Promise<NestFastifyApplication> {
  const adapter = new FastifyAdapter({ bodyLimit: bodyLimitBytes, genReqId: () => newId(), forceCloseConnections: true, frameworkErrors });
  const app = await NestFactory.create<NestFastifyApplication>(module, adapter, {
    bufferLogs: !preview,
    abortOnError: false,
    preview,
    logger: preview ? false : undefined,
  });
  if (!preview) app.useLogger(quietLogger(app.get(Logger)));
  acceptEmptyJson(app);
  app.enableVersioning({ type: VersioningType.URI });
  app.useGlobalFilters(new ProblemFilter());
  app.useGlobalInterceptors(new JobLocationInterceptor(), new StandardSchemaSerializerInterceptor(app.get(Reflector, { strict: false })));
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
    protectDocumentation(app);
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
  const problem = toProblem(new AppError(error.statusCode === 414 ? 'route_not_found' : 'request_malformed', { detail: error.message.slice(0, 200) }));
  const answer = reply as unknown as FastifyReply;
  void answer.status(problem.status).type('application/problem+json').send(JSON.stringify(problem));
};

/** Clients that always send a content type may post without a body, e.g. to cancel a job. Everything else is parsed as Fastify does. */
function acceptEmptyJson(app: NestFastifyApplication): void {
  const parse = app.getHttpAdapter().getInstance().getDefaultJsonParser('error', 'error');
  app.useBodyParser('application/json', { bodyLimit: bodyLimitBytes }, (request, body, done) => {
    if (body.length === 0) done(null, undefined);
    else void parse(request as never, body.toString(), done);
  });
}

/** The documents are served by the framework, past the guards; a person reads them in a browser, which cannot send a bearer token. */
function protectDocumentation(app: NestFastifyApplication): void {
  const tokens = app.get(TokenVerifier, { strict: false });
  app
    .getHttpAdapter()
    .getInstance()
    .addHook('onRequest', async (request, reply) => {
      // The route, not the text of the URL, which can be written in many ways.
      if (!/^\/(docs|openapi\.json)/.test(request.routeOptions.url ?? '')) return;
      try {
        tokens.verifyForBrowser(request.headers);
      } catch (error) {
        const problem = toProblem(error);
        await reply
          .status(problem.status)
          .header('www-authenticate', 'Basic realm="Airdock: the token is the password"')
          .type('application/problem+json')
          .send(JSON.stringify(problem));
      }
    });
}

/** The OpenAPI 3.0.3 document of an application, generated from its controllers and schemas. */
export function openApiDocument(app: NestFastifyApplication, title: string): OpenAPIObject {
  const info = new DocumentBuilder()
    .setTitle(title)
    .setDescription('The local image registry of an air-gapped Kubernetes site. Errors are problem documents (RFC 9457) with a stable `code` and a `nextStep`.')
    .setVersion('1')
    .setLicense('Apache-2.0', 'https://www.apache.org/licenses/LICENSE-2.0')
    .setOpenAPIVersion('3.0.3')
    .addServer('/')
    .addBearerAuth({ type: 'http', scheme: 'bearer' }, 'token')
    .addSecurityRequirements('token')
    .build();
  const document = SwaggerModule.createDocument(app, info, { ignoreGlobalPrefix: false });
  for (const path of Object.values(document.paths)) {
    for (const operation of Object.values(path) as { responses?: Record<string, { content?: Record<string, unknown> }> }[]) {
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
