import { createServiceClient } from '@airdock/clients/service-clients';
import { AppError, type ErrorCode, toProblem } from '@airdock/core/errors';
import { startJsonServer } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { requireRegistry } from './require-registry.js';

async function service(collecting: () => boolean, storageError?: ErrorCode) {
  let asked = 0;
  const server = await startJsonServer({
    '/v1/registry': () => {
      asked += 1;
      return {
        url: 'http://localhost:5100',
        sockets: null,
        storage: null,
        error: null,
        collecting: collecting(),
        storageError: storageError ? toProblem(new AppError(storageError)) : null,
      };
    },
  });
  return {
    client: createServiceClient(server.url, 'token'),
    asked: () => asked,
    [Symbol.asyncDispose]: () => server.stop(),
  };
}

describe('requireRegistry', () => {
  it('waits for the end of a garbage collection, and says so', async () => {
    const answers = [true, true, false];
    await using registry = await service(() => answers.shift() ?? false);
    let waited = 0;
    const onWait = () => {
      waited += 1;
    };
    expect(await requireRegistry(registry.client, { onWait })).toMatchObject({ address: 'http://localhost:5100' });
    expect([registry.asked(), waited]).toEqual([3, 1]);
    expect(await requireRegistry(registry.client, { onWait })).toBeDefined();
    expect(waited).toBe(1);
  });

  it('does not wait when it is told so, and hears an abort while it waits', async () => {
    await using registry = await service(() => true);
    expect(await requireRegistry(registry.client, { waits: false })).toBeDefined();
    const stop = new AbortController();
    const waiting = requireRegistry(registry.client, {
      signal: stop.signal,
      onWait: () => stop.abort(new AppError('job_cancelled')),
    });
    await expect(waiting).rejects.toMatchObject({ code: 'job_cancelled' });
  });

  it.each([
    [
      'registry_storage_changed',
      { write: 'registry_storage_changed', read: 'registry_storage_changed', look: undefined },
    ],
    ['registry_storage_read_only', { write: 'registry_storage_read_only', read: undefined, look: undefined }],
  ] as const)('of a storage with %s lets through who can go on', async (storageError, expected) => {
    await using registry = await service(() => false, storageError);
    for (const use of ['write', 'read', 'look'] as const) {
      const refusal = await requireRegistry(registry.client, { use }).then(
        () => undefined,
        (error: AppError) => error.code,
      );
      expect([use, refusal]).toEqual([use, expected[use]]);
    }
  });
});
