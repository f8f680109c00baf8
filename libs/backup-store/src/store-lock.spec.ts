import { mkdir, readdir, readFile, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { BackupStorage } from './backup-storage.js';
import { FolderStorage } from './folder-storage.js';
import { type LockOptions, StoreLock } from './store-lock.js';

const soon = { pauseMs: 1, watchMs: 5 };
const minute = 60_000;

let dir: TempDir;
let storage: BackupStorage;
beforeEach(async () => {
  dir = await tempDir('store-lock');
  storage = await FolderStorage.open(dir.path);
});
afterEach(() => dir.remove());

const acquire = (kind: LockOptions['kind'], id: string, more: Partial<LockOptions> = {}) =>
  StoreLock.acquire(storage, { kind, id, ...soon, ...more });
const locks = async (): Promise<string[]> => (await readdir(join(dir.path, 'locks')).catch((): string[] => [])).sort();
const fileOf = (name: string) => join(dir.path, 'locks', `${name}.json`);
/** A lock of a process of another machine, which has died, or whose clock is wrong. */
async function leave(name: string, ageMs: number): Promise<void> {
  await mkdir(join(dir.path, 'locks'), { recursive: true });
  await writeFile(fileOf(name), '{}\n');
  await age(name, ageMs);
}
async function age(name: string, ageMs: number): Promise<void> {
  const at = new Date(Date.now() - ageMs);
  await utimes(fileOf(name), at, at);
}
/** The storage, with some of its methods in another way. */
const storageWith = (changes: Partial<BackupStorage>): BackupStorage =>
  new Proxy(storage, {
    get(target, key) {
      const value: unknown = Reflect.get(changes, key) ?? Reflect.get(target, key);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
const refusing = (code: 'space_insufficient' | 'backup_target_read_only') => async () => {
  throw new AppError(code);
};

describe('a lock of a store', () => {
  it('lies there with its kind, its work and its holder while it is held, and goes when that ends', async () => {
    {
      await using lock = await acquire('shared', 'job');
      expect(await locks()).toEqual(['shared-job.json']);
      const content = JSON.parse(await readFile(fileOf('shared-job'), 'utf8')) as Record<string, string>;
      expect(content).toMatchObject({ kind: 'shared', id: 'job' });
      expect(content.holder).toContain(`/${process.pid}/`);
      expect(() => lock.assertHeld()).not.toThrow();
      expect(lock.signal.aborted).toBe(false);
    }
    expect(await locks()).toEqual([]);
  });

  it.each([
    ['shared', 'shared', true],
    ['shared', 'exclusive', false],
    ['exclusive', 'shared', false],
    ['exclusive', 'exclusive', false],
  ] as const)('that is %s lets another one in that is %s: %s', async (held, wanted, isLetIn) => {
    await using _first = await acquire(held, 'first');
    const second = acquire(wanted, 'second', { waitMs: 0 });
    if (isLetIn) await (await second)[Symbol.asyncDispose]();
    else
      await expect(second).rejects.toMatchObject({
        code: 'backup_store_busy',
        details: { detail: `in the way: ${held}-first` },
      });
    // Who gave up, or has ended, is in nobody's way.
    expect(await locks()).toEqual([`${held}-first.json`]);
  });

  it('is given to one at a time of many that come at once', async () => {
    let holders = 0;
    let most = 0;
    const work = async (id: string) => {
      await using _lock = await acquire('exclusive', id);
      holders += 1;
      most = Math.max(most, holders);
      await locks();
      holders -= 1;
    };
    await Promise.all(Array.from({ length: 5 }, (_, index) => work(`prune-${index}`)));
    expect(most).toBe(1);
    expect(await locks()).toEqual([]);
  });

  it('says who is in the way before each wait, and comes when they have gone', async () => {
    const first = await acquire('shared', 'reader');
    const told: string[][] = [];
    const onWait = (holders: string[]) => {
      told.push(holders);
      if (told.length === 3) void first[Symbol.asyncDispose]();
    };
    await using _second = await acquire('exclusive', 'prune', { onWait });
    expect(told.length).toBeGreaterThanOrEqual(3);
    expect(new Set(told.flat())).toEqual(new Set(['shared-reader']));
  });

  it('is waited for until the signal ends that, and nothing is left then', async () => {
    await using _first = await acquire('exclusive', 'prune');
    const called = new AbortController();
    const reason = new Error('cancelled');
    const onWait = () => called.abort(reason);
    await expect(acquire('shared', 'job', { signal: called.signal, onWait })).rejects.toBe(reason);
    expect(await locks()).toEqual(['exclusive-prune.json']);
  });

  it('is not written when the signal was there before', async () => {
    await expect(acquire('shared', 'job', { signal: AbortSignal.abort(new Error('over')) })).rejects.toThrow('over');
    expect(await locks()).toEqual([]);
  });

  it('of a work that was killed is taken over by whoever takes the work up, whose it is from then on', async () => {
    const killed = await acquire('exclusive', 'prune');
    await using again = await acquire('exclusive', 'prune', { waitMs: 0 });
    await killed[Symbol.asyncDispose]();
    expect(await locks()).toEqual(['exclusive-prune.json']);
    again.assertHeld();
  });
});

describe('a lock that looks stale', () => {
  it.each([
    ['is old', 16 * minute],
    ['is of the future', -16 * minute],
  ])('since it %s is removed when nobody renews it while it is watched', async (_, ageMs) => {
    await leave('exclusive-dead', ageMs);
    const told: string[] = [];
    await using _lock = await acquire('shared', 'job', { onWait: (holders) => told.push(...holders) });
    expect(told).toContain('exclusive-dead');
    expect(await locks()).toEqual(['shared-job.json']);
  });

  it.each([14 * minute, -14 * minute])('but differs by %i ms only stays in the way', async (ageMs) => {
    await leave('exclusive-alive', ageMs);
    await expect(acquire('shared', 'job', { waitMs: 40 })).rejects.toMatchObject({ code: 'backup_store_busy' });
    expect(await locks()).toEqual(['exclusive-alive.json']);
  });

  it('stays in the way as long as somebody renews it, however wrong the clock is', async () => {
    await leave('exclusive-skewed', 60 * minute);
    let renewals = 0;
    const skewed = storageWith({
      list: async function* (folder: string) {
        renewals += 1;
        await age('exclusive-skewed', 60 * minute - renewals * 1_000);
        yield* storage.list(folder);
      },
    });
    const waiting = StoreLock.acquire(skewed, { kind: 'shared', id: 'job', ...soon, waitMs: 60 });
    await expect(waiting).rejects.toMatchObject({ code: 'backup_store_busy' });
    expect(renewals).toBeGreaterThan(2);
    expect(await locks()).toEqual(['exclusive-skewed.json']);
  });

  it('is measured by the clock of the storage, not by our own', async () => {
    await leave('exclusive-other', 0);
    // The storage lives an hour ago: what is fresh there looks old here.
    const behind = storageWith({
      list: async function* (folder: string) {
        for await (const file of storage.list(folder)) yield { ...file, modifiedAt: file.modifiedAt - 60 * minute };
      },
    });
    const waiting = StoreLock.acquire(behind, { kind: 'shared', id: 'job', ...soon, waitMs: 40 });
    await expect(waiting).rejects.toMatchObject({ code: 'backup_store_busy' });
  });

  it('is watched before it goes: at first sight it is in the way', async () => {
    await leave('exclusive-dead', 60 * minute);
    await expect(acquire('shared', 'job', { watchMs: minute, waitMs: 20 })).rejects.toMatchObject({
      code: 'backup_store_busy',
    });
    expect(await locks()).toEqual(['exclusive-dead.json']);
  });
});

describe('a storage that takes no lock', () => {
  it('without a free byte takes one without content, under a name that says whose it is', async () => {
    const full = storageWith({
      write: (name, content, options) =>
        (content as Uint8Array).byteLength > 0
          ? refusing('space_insufficient')()
          : storage.write(name, content, options),
    });
    {
      await using lock = await StoreLock.acquire(full, { kind: 'exclusive', id: 'prune', ...soon });
      expect(await locks()).toEqual([expect.stringMatching(/^exclusive-prune\.[0-9a-f-]{36}\.json$/)]);
      lock.assertHeld();
      expect(lock.missing).toBeUndefined();
    }
    expect(await locks()).toEqual([]);
  });

  it.each(['space_insufficient', 'backup_target_read_only'] as const)(
    '(%s) is read without one, which is said, and not written to',
    async (code) => {
      const shut = storageWith({ write: refusing(code), remove: refusing(code) });
      const options = { kind: 'shared', id: 'job', ...soon } as const;
      await expect(StoreLock.acquire(shut, options)).rejects.toMatchObject({ code });
      await using lock = await StoreLock.acquire(shut, { ...options, isReader: true });
      expect(lock.missing).toMatchObject({ code });
      lock.assertHeld();
    },
  );

  it('that is away is an error for readers too', async () => {
    const away = storageWith({
      write: async () => {
        throw new AppError('backup_target_unavailable');
      },
    });
    const reader = StoreLock.acquire(away, { kind: 'shared', id: 'job', ...soon, isReader: true });
    await expect(reader).rejects.toMatchObject({ code: 'backup_target_unavailable' });
  });

  it('that goes away does not hide what the work failed with', async () => {
    const going = storageWith({
      stat: async () => {
        throw new AppError('backup_target_unavailable');
      },
    });
    const lock = await StoreLock.acquire(going, { kind: 'shared', id: 'job', ...soon });
    await expect(lock[Symbol.asyncDispose]()).resolves.toBeUndefined();
  });
});

describe('a lock that is held for long', () => {
  beforeEach(() => vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] }));
  afterEach(() => vi.useRealTimers());
  const turn = async (ms: number) => {
    vi.setSystemTime(Date.now());
    await vi.advanceTimersByTimeAsync(ms);
  };

  it('is lost at the latest after ten minutes without a write, and the work is told', async () => {
    let isHanging = false;
    const hanging = storageWith({
      write: (name, content, options) =>
        isHanging ? new Promise(() => undefined) : storage.write(name, content, options),
    });
    const lock = await StoreLock.acquire(hanging, { kind: 'exclusive', id: 'prune', ...soon });
    isHanging = true;
    await turn(9 * minute);
    expect(() => lock.assertHeld()).not.toThrow();
    await turn(2 * minute);
    expect(lock.signal.aborted).toBe(true);
    expect(() => lock.assertHeld()).toThrow(expect.objectContaining({ code: 'backup_target_unavailable' }));
  });

  it('is noticed by a process that was frozen before it removes anything, also before its timer', async () => {
    const lock = await acquire('exclusive', 'prune');
    const now = performance.now();
    const clock = vi.spyOn(performance, 'now').mockReturnValue(now + 11 * minute);
    try {
      expect(() => lock.assertHeld()).toThrow(expect.objectContaining({ code: 'backup_target_unavailable' }));
      expect(lock.signal.aborted).toBe(true);
    } finally {
      clock.mockRestore();
    }
  });
});
