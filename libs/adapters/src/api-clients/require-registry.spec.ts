import { AppError } from '@airdock/core/errors';
import { startJsonServer } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { requireRegistry } from './require-registry.js';
import { createServiceClient } from './service-clients.js';

async function service(collecting: () => boolean) {
  let asked = 0;
  const server = await startJsonServer({
    '/v1/registry': () => {
      asked += 1;
      return { url: 'http://localhost:5100', sockets: null, storage: null, error: null, collecting: collecting() };
    },
  });
  return { client: createServiceClient(server.url, 'token'), asked: () => asked, [Symbol.asyncDispose]: () => server.stop() };
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
    const waiting = requireRegistry(registry.client, { signal: stop.signal, onWait: () => stop.abort(new AppError('job_cancelled')) });
    await expect(waiting).rejects.toMatchObject({ code: 'job_cancelled' });
  });
});
