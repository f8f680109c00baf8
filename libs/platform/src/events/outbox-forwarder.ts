import { request as httpRequest, type RequestOptions } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { AppError } from '@airdock/core/errors';
import { BackgroundLoop } from '../background-loop.js';
import { type Config, serviceEndpoint } from '../config.js';
import type { ServiceDatabase } from '../database.js';
import { QuietDatabase } from '../quiet-database.js';
import type { TokenFile } from '../token-file.js';
import { OutboxEventEntity } from './outbox.entity.js';

const eventsAtOnce = 100;
const timeoutMs = 10_000;

/**
 * Runs in workers: hands the events of a service to backup-svc, which sends webhooks. At least once: backup-svc knows
 * an event by its id.
 */
export class OutboxForwarder extends BackgroundLoop {
  protected readonly pauseMs = 500;
  private readonly quiet: QuietDatabase;

  constructor(
    private readonly config: Config,
    private readonly database: ServiceDatabase,
    private readonly token: TokenFile,
  ) {
    super();
    this.quiet = new QuietDatabase(database);
  }

  protected round(): Promise<void> {
    return this.quiet.unlessQuiet(async () => {
      const events = this.database.dataSource.getRepository(OutboxEventEntity);
      const found = await events.find({ order: { id: 'ASC' }, take: eventsAtOnce });
      for (const event of found) {
        await this.hand(event);
        await events.delete({ id: event.id });
      }
      return found.length === 0;
    });
  }

  private async hand(event: OutboxEventEntity): Promise<void> {
    const { status, words } = await this.post(JSON.stringify(event));
    // An event that nobody will ever take, of another version of Airdock perhaps, must not keep all later ones from
    // their way.
    if (status === 422 || status === 413)
      this.logger.error({ event: event.id, type: event.type, words }, 'an event was refused, and is given up');
    else if (status < 200 || status > 299)
      throw new AppError('dependency_unavailable', { detail: `backup-svc answered ${status} to an event` });
  }

  private post(body: string): Promise<{ status: number; words: string }> {
    const { url, socketPath } = serviceEndpoint(this.config, 'backup');
    const target = new URL(`${url}/v1/webhook-events`);
    const options: RequestOptions = {
      // Not the global agent, which may lead to a proxy of the environment.
      agent: false,
      ...{ method: 'POST', socketPath, signal: AbortSignal.timeout(timeoutMs) },
      headers: {
        authorization: `Bearer ${this.token.token}`,
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(body),
      },
    };
    return new Promise((resolve, reject) => {
      const request = (target.protocol === 'https:' ? httpsRequest : httpRequest)(target, options, (answer) => {
        let words = '';
        answer.setEncoding('utf8');
        answer.on('data', (chunk: string) => (words = `${words}${chunk}`.slice(0, 500)));
        answer.once('end', () => resolve({ status: answer.statusCode ?? 0, words })).once('error', reject);
      });
      request.once('error', reject);
      request.end(body);
    });
  }
}
