import { AppError } from '@airdock/core/errors';
import { BackgroundLoop } from '../background-loop.js';
import type { ServiceDatabase } from '../database.js';
import { QuietDatabase } from '../quiet-database.js';
import type { EventSink } from './event-sink.js';
import { OutboxEventEntity } from './outbox.entity.js';

const eventsAtOnce = 100;

/** Runs in workers: hands the events of a service on, at least once, in their order. */
export class OutboxForwarder extends BackgroundLoop {
  protected readonly pauseMs = 500;
  private readonly quiet: QuietDatabase;

  constructor(
    private readonly database: ServiceDatabase,
    private readonly sink: EventSink,
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
    try {
      await this.sink.takeEvent(event);
    } catch (error) {
      // An event that nobody will ever take, of another version of Airdock perhaps, must not keep all later ones from
      // their way.
      if (!(error instanceof AppError) || !['request_invalid', 'payload_too_large'].includes(error.code)) throw error;
      this.logger.error({ event: event.id, type: event.type, err: error }, 'an event was refused, and is given up');
    }
  }
}
