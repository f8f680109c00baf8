import type { FrozenTables } from './migration.js';

/** The tables that every service has beside its own, as they were when migrations began. */
export const platformTables: FrozenTables = {
  idempotency_key: {
    columns: {
      id: 'key varchar',
      requestDigest: 'varchar',
      createdAt: 'varchar',
      status: 'integer?',
      headers: 'text?',
      body: 'text?',
    },
  },
  job: {
    columns: {
      id: 'key varchar',
      type: 'varchar',
      state: 'varchar',
      progress: 'text',
      error: 'text?',
      result: 'text?',
      resource: 'varchar',
      parentId: 'varchar?',
      createdBy: 'varchar',
      createdAt: 'varchar',
      startedAt: 'varchar?',
      finishedAt: 'varchar?',
      cancelRequestedAt: 'varchar?',
      attempt: 'integer',
      failures: 'integer',
      lost: 'integer = 0',
      runAfter: 'varchar?',
      leaseOwner: 'varchar?',
      leaseUntil: 'varchar?',
      requestKey: 'unique varchar?',
      revision: 'integer',
    },
    indices: [['parentId'], ['state']],
  },
  outbox_event: {
    columns: {
      id: 'key varchar',
      type: 'varchar',
      payload: 'text',
      createdAt: 'varchar',
    },
  },
};
