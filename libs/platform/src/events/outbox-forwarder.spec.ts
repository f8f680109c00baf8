import { AppError } from '@airdock/core/errors';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { Logger } from '@nestjs/common';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '../database.js';
import { tablesOf } from '../schema/testing/tables.js';
import { EventSink } from './event-sink.js';
import { OutboxEventEntity } from './outbox.entity.js';
import { OutboxForwarder } from './outbox-forwarder.js';

/** Takes events, but for those that it was told to answer with an error; each of these is used once. */
class Sink extends EventSink {
  readonly offered: string[] = [];
  readonly answers = new Map<string, unknown[]>();

  async takeEvent({ id }: OutboxEventEntity): Promise<void> {
    this.offered.push(id);
    const error = this.answers.get(id)?.shift();
    if (error) throw error;
  }
}

let folder: TempDir;
let database: ServiceDatabase;
let sink: Sink;
let forwarder: OutboxForwarder;
const logged = vi.spyOn(Logger.prototype, 'error').mockImplementation(() => undefined);
const events = () => database.dataSource.getRepository(OutboxEventEntity);
const write = (...ids: string[]) =>
  events().insert(ids.map((id) => ({ id, type: 'x', payload: '{}', createdAt: '2026-01-01T00:00:00.000Z' })));
const allForwarded = () => waitFor(async () => (await events().count()) === 0);

beforeEach(async () => {
  folder = await tempDir('outbox');
  const config = loadConfig({ file: '/dev/null', environment: {}, overrides: { dataDir: folder.path } });
  database = new ServiceDatabase(
    await connectDatabase(dataSourceOptions(config, 'image', [OutboxEventEntity], [tablesOf([OutboxEventEntity])])),
  );
  sink = new Sink();
  forwarder = new OutboxForwarder(database, sink);
  logged.mockClear();
});
afterEach(async () => {
  await forwarder.beforeApplicationShutdown();
  await database.dataSource.destroy();
  await folder.remove();
});

it('hands events on in their order, those too that are written later', async () => {
  await write('b', 'a');
  forwarder.onApplicationBootstrap();
  await allForwarded();
  await write('c');
  await allForwarded();
  expect(sink.offered).toEqual(['a', 'b', 'c']);
  expect(logged).not.toHaveBeenCalled();
});

it.each(['request_invalid', 'payload_too_large'] as const)(
  'gives an event up that is refused with %s, says so in the log, and hands the later ones on',
  async (code) => {
    sink.answers.set('b', [new AppError(code)]);
    await write('a', 'b', 'c');
    forwarder.onApplicationBootstrap();
    await allForwarded();
    expect(sink.offered).toEqual(['a', 'b', 'c']);
    expect(logged).toHaveBeenCalledExactlyOnceWith(
      expect.objectContaining({ event: 'b', type: 'x', err: expect.objectContaining({ code }) }),
      expect.stringContaining('given up'),
    );
  },
);

it.each([
  ['a sink that is away', new AppError('registry_unavailable')],
  ['a token that is wrong', new AppError('token_invalid')],
  ['an error without a code', new Error('a bug')],
])('keeps an event, and the later ones behind it, for another try after %s', async (_what, error) => {
  sink.answers.set('b', [error, error]);
  await write('a', 'b', 'c');
  forwarder.onApplicationBootstrap();
  await waitFor(() => sink.offered.length >= 2);
  expect((await events().find({ order: { id: 'ASC' } })).map(({ id }) => id)).toEqual(['b', 'c']);
  await allForwarded();
  expect(sink.offered).toEqual(['a', 'b', 'b', 'b', 'c']);
});
