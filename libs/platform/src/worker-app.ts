import type { INestApplicationContext, Type } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { Logger } from 'nestjs-pino';

/** The application of a root module whose process answers no requests: no server, no documents. Takes no jobs yet. */
export async function createWorkerApp(module: Type): Promise<INestApplicationContext> {
  const app = await NestFactory.createApplicationContext(module, {
    bufferLogs: true,
    // A start that fails is told by its error alone.
    autoFlushLogs: false,
    abortOnError: false,
  });
  app.useLogger(app.get(Logger));
  app.flushLogs();
  return app;
}
