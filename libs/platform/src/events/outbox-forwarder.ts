import { AppError } from '@airdock/core/errors';
import { BackgroundLoop } from '../background-loop.js';
import { type Config, serviceUrl } from '../config.js';
import type { ServiceDatabase } from '../database.js';
import { apiToken } from '../platform.module.js';
import { OutboxEventEntity } from './outbox.entity.js';

const eventsAtOnce = 100;
const timeoutMs = 10_000;

/** Runs in workers: hands the events of a service to backup-svc, which sends webhooks. At least once: backup-svc knows an event by its id. */
export class OutboxForwarder extends BackgroundLoop {
  protected readonly pauseMs = 1_000;

  constructor(
    private readonly config: Config,
    private readonly database: ServiceDatabase,
  ) {
    super();
  }

  protected async round(): Promise<void> {
    const events = this.database.dataSource.getRepository(OutboxEventEntity);
    for (const event of await events.find({ order: { id: 'ASC' }, take: eventsAtOnce })) {
      await this.hand(event);
      await events.delete({ id: event.id });
    }
  }

  private async hand(event: OutboxEventEntity): Promise<void> {
    const url = `${serviceUrl(this.config, 'backup')}/v1/webhook-events`;
    const headers = { authorization: `Bearer ${apiToken(this.config)}`, 'content-type': 'application/json' };
    const answer = await fetch(url, { method: 'POST', headers, body: JSON.stringify(event), signal: AbortSignal.timeout(timeoutMs) });
    const words = (await answer.text()).slice(0, 500);
    // An event that nobody will ever take, of another version of Airdock perhaps, must not keep all later ones from their way.
    if (answer.status === 422 || answer.status === 413)
      this.logger.error({ event: event.id, type: event.type, words }, 'an event was refused, and is given up');
    else if (!answer.ok) throw new AppError('dependency_unavailable', { detail: `${url} answered ${answer.status}` });
  }
}
