/** What a DU was told to end with itself is ended, whatever else ends at the same moment. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createPush, getJob } from '@airdock/clients/generated/sdk.gen';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { tempDir, waitFor } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { childOf, registryPid } from '../support/processes.js';

/** A zombie whose parent has ended is gone in a moment. */
const isRunning = (pid: number): boolean => {
  try {
    return !readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ');
  } catch {
    return false;
  }
};

describe('a DU with --stop-registry', () => {
  it.each(
    [
      'Redis too',
      'Redis first',
      'Redis too',
      'Redis too',
      'the read-write registry too',
      'Redis, stopped',
      'Redis too',
    ].map((what, index) => ({
      what,
      index,
    })),
  )(
    'ends its registry when TERM comes to it in the middle of a push, and to $what ($index)',
    async ({ what, index }) => {
      await using folder = await tempDir('ends');
      await using du = await Du.start({
        folder: folder.path,
        stopsRegistry: true,
        registry: { directPlacement: index % 2 === 0 },
      });
      const client = await du.client();
      const file = join(du.bundleDir, 'large.tar');
      await buildOciArchive(file, [
        await makeImage({
          name: 'quay.io/large:1',
          layers: [{ randomBytes: 200_000_000 + index, seed: String(index) }],
        }),
      ]);
      const bundleId = await register(client, file);
      const pids = await Promise.all(
        (['read-write', 'read-only'] as const).map((instance) => registryPid(du, instance)),
      );
      const redis = await childOf(du.pid, 'redis-server');
      const { data: job } = await createPush({ client, body: { bundleId }, throwOnError: true });
      await waitFor(
        async () =>
          ((await getJob({ client, path: { id: job.id }, throwOnError: true })).data.progress.bytesDone ?? 0) > 0,
        {
          what: 'the push to be under way',
          intervalMs: 5,
          timeoutMs: 30_000,
        },
      );
      const started = performance.now();
      if (what === 'Redis first') process.kill(redis, 'SIGTERM');
      const ended = du.end();
      if (what === 'Redis too') process.kill(redis, 'SIGTERM');
      if (what === 'Redis, stopped') process.kill(redis, 'SIGSTOP');
      if (what === 'the read-write registry too') process.kill(pids[0] as number, 'SIGTERM');
      try {
        await ended;
        expect(performance.now() - started).toBeLessThan(12_000);
        await waitFor(() => !pids.some(isRunning), { what: 'both registries to be gone', timeoutMs: 1_000 });
      } finally {
        if (what === 'Redis, stopped' && isRunning(redis)) process.kill(redis, 'SIGKILL');
      }
    },
  );
});
