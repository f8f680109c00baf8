import { readdir, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { HostWorker } from './host-worker.js';
import { findVerdicts, leaveVerdict } from './worker-verdict.js';

const served = '01a22d5d-2de4-7000-9038-608a420915e9';
const heavy = '01a22d5d-3888-7000-8c04-d19e7ea8ae13';

/** In its first life it does `deed`; after that it only lives. */
const program = (marker: string, deed: string) => `
import { existsSync, writeFileSync } from 'node:fs';
const isFirst = !existsSync('${marker}');
writeFileSync('${marker}', '');
process.once('disconnect', () => process.exit(0));
process.on('message', (message) => {
  if (message.type === 'stop') process.exit(0);
  const beat = () => process.send({ type: 'beat', heaviest: { hostId: '${heavy}', bytes: 5e6 } });
  const serve = () => writeFileSync(message.servedFile, '${served}');
  beat();
  process.send({ type: 'ready' });
  setInterval(beat, 200);
  if (isFirst) setTimeout(() => { ${deed} }, 500);
});
`;

describe('HostWorker', () => {
  let folder: TempDir;
  let worker: HostWorker | undefined;
  beforeEach(async () => {
    folder = await tempDir('host-worker');
  });
  afterEach(async () => {
    await worker?.stop();
    await folder.remove();
  });

  async function start(deed: string): Promise<number> {
    const main = join(folder.path, 'main.mjs');
    await writeFile(main, program(join(folder.path, 'lived'), deed));
    const options = { file: undefined, overrides: {}, answersHealth: false };
    worker = new HostWorker({
      dataDir: folder.path,
      start: options,
      maxMemoryBytes: 300 * 1024 ** 2,
      log: () => undefined,
      main,
    });
    worker.start();
    await worker.ready;
    return worker.pid ?? 0;
  }
  const another = (pid: number) =>
    waitFor(
      () => worker?.pid !== undefined && worker.pid !== pid && findVerdicts(join(folder.path, 'run')).length > 0,
      {
        what: 'another life',
        timeoutMs: 30_000,
      },
    );
  const verdict = () => findVerdicts(join(folder.path, 'run'))[0]?.value;

  it.each([
    ['stands still', 'serve(); for (;;);', { reason: 'silent', hostId: served }],
    ['crashes', 'serve(); process.abort();', { reason: 'crashed', hostId: served }],
    ['throws', 'serve(); throw new Error("x");', { reason: 'crashed', hostId: served }],
    [
      'takes too much memory',
      'serve(); globalThis.kept = Buffer.alloc(400 * 1024 ** 2, 1);',
      { reason: 'memory', hostId: heavy },
    ],
    ['stands still and serves nobody', 'for (;;);', { reason: 'silent', hostId: null }],
  ])('that %s is started anew, and it is known whom it died of', async (_what, deed, expected) => {
    const pid = await start(deed);
    await another(pid);
    expect(verdict()).toMatchObject({ ...expected, owner: `${hostname()}/${pid}/` });
  });

  it('that is killed from outside blames nobody', async () => {
    const pid = await start(`serve(); setTimeout(() => process.kill(process.pid, 'SIGKILL'), 100);`);
    await another(pid);
    expect(verdict()).toMatchObject({ hostId: null });
  });

  it('ends in order, and leaves no verdict', async () => {
    const pid = await start('');
    await worker?.stop();
    expect(verdict()).toBeUndefined();
    expect(() => process.kill(pid, 0)).toThrow('ESRCH');
  });
});

describe('verdicts that nobody acts on', () => {
  it('are the newest of each host, and not without bound', async () => {
    await using folder = await tempDir('verdicts');
    const leave = (hostId: string | null, second: number) =>
      leaveVerdict(folder.path, {
        owner: `du/${second}/`,
        hostId,
        reason: 'crashed',
        at: new Date(second * 1000).toISOString(),
      });
    for (let second = 1; second <= 150; second++) for (const hostId of [served, heavy, null]) leave(hostId, second);
    // The clock was set back.
    leave(served, 7);
    const found = findVerdicts(folder.path).map(({ value }) => value);
    expect(await readdir(folder.path)).toHaveLength(102);
    const named = found.filter(({ hostId }) => hostId !== null);
    expect(named.map(({ hostId, owner }) => `${hostId} ${owner}`).toSorted()).toEqual(
      [`${served} du/7/`, `${heavy} du/150/`].toSorted(),
    );
    const unnamed = found.filter(({ hostId }) => hostId === null).map(({ owner }) => Number(owner.split('/')[1]));
    expect([unnamed.length, Math.min(...unnamed)]).toEqual([100, 51]);
  });
});
