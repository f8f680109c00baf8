import type { OutboxEventEntity } from './outbox.entity.js';

/** Who takes the events of all services. A class of clients is it (see `serviceClientsProvider`). */
export abstract class EventSink {
  /**
   * Takes an event, perhaps a second time: it is known by its id. Throws `request_invalid` and `payload_too_large` for
   * one that it will never take, and what is worth another try for the rest.
   */
  abstract takeEvent(event: OutboxEventEntity): Promise<void>;
}
