import type { EventType } from '@airdock/core/events';
import { atomically, now, type ServiceDatabase, type Statement } from '../database.js';
import { newId } from '../ids.js';
import { OutboxEventEntity } from './outbox.entity.js';

/** What an event says beside its type and time. Everyone whom an endpoint's URL belongs to reads it: no secrets. */
export type EventData = Record<string, unknown>;

/** Tells webhook endpoints of something: every service has one, and its worker hands what is in it to backup-svc. */
export class Outbox {
  constructor(private readonly database: ServiceDatabase) {}

  /** The statement that says it, for the commit of what it tells of. */
  statement(type: EventType, data: EventData): Statement {
    const createdAt = now();
    const payload = JSON.stringify({ type, timestamp: createdAt, data });
    return this.database.dataSource
      .getRepository(OutboxEventEntity)
      .createQueryBuilder()
      .insert()
      .values({ id: newId(), type, payload, createdAt });
  }

  /**
   * Says it if the change finds its row, in one commit with it. False, and nothing is said, when it does not: somebody
   * else was faster.
   */
  emitWith(change: Statement, type: EventType, data: EventData): Promise<boolean> {
    return atomically(this.database.dataSource, [change, this.statement(type, data)]);
  }

  /**
   * Says what belongs to no other change, e.g. that something is overdue. Whoever calls it sees to it that this happens
   * once.
   */
  async emit(type: EventType, data: EventData): Promise<void> {
    await this.statement(type, data).execute();
  }
}
