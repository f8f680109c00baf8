import { Controller, Get, Header, HttpCode, Inject, Injectable, Res, VERSION_NEUTRAL } from '@nestjs/common';
import { ApiExcludeController } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { collectDefaultMetrics, Registry } from 'prom-client';
import { Public } from './access.js';

/** Something that must answer before requests make sense, e.g. a service's database. */
export interface ReadinessCheck {
  name: string;
  check(): Promise<void>;
}

/** Injection token: the checks of `/readyz`. */
export const READINESS_CHECKS = Symbol('READINESS_CHECKS');

/**
 * What a service knows to be wrong while requests make sense all the same, such as a stranger on one of its ports: a
 * few words by name, without secrets.
 */
export interface NoticeSource {
  notices(): Promise<Record<string, string>>;
}

/** Injection token: what has notices for `/readyz`. */
export const NOTICE_SOURCES = Symbol('NOTICE_SOURCES');

/** Counters and gauges of this process, in the format of Prometheus. */
@Injectable()
export class Metrics {
  readonly registry = new Registry();

  constructor() {
    // The delay of the event loop is measured by a timer: every 10 ms, as is the default, it costs more than all else
    // that an idle DU does.
    collectDefaultMetrics({ register: this.registry, prefix: 'airdock_', eventLoopMonitoringPrecision: 500 });
  }
}

/** `/livez`, `/readyz` and `/metrics`. */
@ApiExcludeController()
@Controller({ version: VERSION_NEUTRAL })
export class HealthController {
  constructor(
    private readonly metrics: Metrics,
    @Inject(READINESS_CHECKS) private readonly checks: ReadinessCheck[],
    @Inject(NOTICE_SOURCES) private readonly sources: NoticeSource[],
  ) {}

  /** The process answers. */
  @Public()
  @Get('livez')
  @HttpCode(200)
  live() {
    return { status: 'ok' };
  }

  /** The process can work. The reason of a failure goes to the log, not to whoever asks without a token. */
  @Public()
  @Get('readyz')
  async ready(@Res({ passthrough: true }) reply: FastifyReply) {
    const checks = Object.fromEntries(
      await Promise.all(
        this.checks.map(
          async ({ name, check }) =>
            [
              name,
              await check().then(
                () => 'ok',
                () => 'failed',
              ),
            ] as const,
        ),
      ),
    );
    const ok = Object.values(checks).every((value) => value === 'ok');
    // Of a database that is away the check has told already.
    const notices = await Promise.all(this.sources.map((source) => source.notices().catch(() => ({}))));
    void reply.status(ok ? 200 : 503);
    return { status: ok ? 'ok' : 'failed', checks, notices: Object.assign({}, ...notices) as Record<string, string> };
  }

  @Get('metrics')
  @Header('content-type', 'text/plain; version=0.0.4; charset=utf-8')
  async scrape(): Promise<string> {
    return this.metrics.registry.metrics();
  }
}
