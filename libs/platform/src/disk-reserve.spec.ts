import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { DataSource, EntitySchema } from 'typeorm';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadConfig } from './config.js';
import { atomically, connectDatabase, dataSourceOptions, runUnflushed, translateDatabaseError } from './database.js';
import { DiskReserve, isMountedReadOnly, whatIsShort } from './disk-reserve.js';
import { tablesOf } from './schema/testing/tables.js';

const run = promisify(execFile);
const thing = new EntitySchema<{ id: number; text: string }>({
  name: 'thing',
  columns: { id: { type: 'integer', primary: true }, text: { type: 'varchar' } },
});

/** A real disk, of 80 MiB and 2,000 files. */
describe('a disk', () => {
  let folder: TempDir;
  let disk: string;
  let reserve: DiskReserve;
  let canMount: boolean;
  beforeEach(async (context) => {
    folder = await tempDir('reserve');
    disk = join(folder.path, 'disk');
    await mkdir(disk);
    canMount = await run('mount', ['-t', 'tmpfs', '-o', 'size=80m,nr_inodes=2000', 'tmpfs', disk]).then(
      () => true,
      () => false,
    );
    if (!canMount) context.skip('no file system can be mounted');
    reserve = new DiskReserve(join(disk, 'reserve'));
  });
  afterEach(async () => {
    if (canMount) await run('umount', ['--lazy', disk]);
    await folder.remove();
  });
  const kept = async () => (await readdir(join(disk, 'reserve')).catch(() => [])).length;
  const fill = (what: string) =>
    run(
      'sh',
      what === 'bytes'
        ? ['-c', 'cat /dev/zero >"$0/full"', disk]
        : ['-c', 'mkdir "$0/full"; i=0; while true >"$0/full/$i"; do i=$((i+1)); done', disk],
    ).catch(() => undefined);

  it.each(['bytes', 'files'])(
    'that runs out of %s gets back a part of its reserve at a time, and the whole when there is room',
    async (what) => {
      expect(await whatIsShort(disk)).toBeUndefined();
      expect(await reserve.relieve()).toBe(false);
      expect(await reserve.isGivenOut()).toBe(false);
      await reserve.keep();
      expect([await kept(), await reserve.isGivenOut()]).toEqual([256, false]);
      await fill(what);
      expect(await whatIsShort(disk)).toBe(what);
      await reserve.keep();
      expect(await kept()).toBe(192);
      expect([await whatIsShort(disk), await reserve.isGivenOut()]).toEqual([undefined, true]);
      await writeFile(join(disk, 'row'), Buffer.alloc(1_000_000, 1));
      await reserve.keep();
      expect(await kept()).toBe(192);
      await rm(join(disk, 'full'), { recursive: true });
      await reserve.keep();
      expect([await kept(), await reserve.isGivenOut()]).toEqual([256, false]);
    },
  );

  it('that has its reserve for a while gets back a piece that somebody has taken', async () => {
    await reserve.keep();
    const anHourAgo = new Date(Date.now() - 3_600_000);
    await utimes(join(disk, 'reserve'), anHourAgo, anHourAgo);
    for (let round = 0; round < 2; round++) {
      await reserve.keep();
      await rm(join(disk, `reserve/piece-${round}`));
      await reserve.keep();
      expect(await kept()).toBe(256);
    }
  });

  it('with hardly more room than a reserve takes gets none, and what is no piece stays', async () => {
    await writeFile(join(disk, 'large'), Buffer.alloc(40 * 1024 * 1024, 1));
    await reserve.keep();
    expect(await kept()).toBe(0);
    await mkdir(join(disk, 'reserve'));
    await writeFile(join(disk, 'reserve/note'), 'mine');
    await fill('bytes');
    expect(await reserve.relieve()).toBe(false);
    expect(await readFile(join(disk, 'reserve/note'), 'utf8')).toBe('mine');
  });

  it('on which a link lies where the reserve was loses the link, and nothing behind it', async () => {
    const other = join(folder.path, 'other');
    await mkdir(other);
    await writeFile(join(other, 'piece-0'), 'of others');
    await symlink(other, join(disk, 'reserve'));
    await fill('bytes');
    expect(await reserve.relieve()).toBe(false);
    expect(await readdir(other)).toEqual(['piece-0']);
  });

  it('that is not there, or read-only, is no full one', async () => {
    expect(await whatIsShort(join(disk, 'none'))).toBeUndefined();
    expect([await isMountedReadOnly(disk), await isMountedReadOnly(join(disk, 'none'))]).toEqual([false, false]);
    await run('mount', ['-o', 'remount,ro', disk]);
    expect(await isMountedReadOnly(disk)).toBe(true);
  });

  it.each([
    ['has no byte left', () => fill('bytes'), () => rm(join(disk, 'full')), 'database_full'],
    [
      'the kernel has mounted read-only',
      () => run('sh', ['-c', 'echo 1 >/sys/fs/ext4/$(basename "$(findmnt -n -o SOURCE "$0")")/trigger_fs_error', disk]),
      // A disk that has failed is checked while it is not mounted.
      undefined,
      'database_disk_failed',
    ],
  ] as const)(
    'that %s is named by the database on it, which reads, and writes again where it can',
    async (_, disturb, mend, code) => {
      await run('umount', [disk]);
      const make = 'truncate -s 40M "$0" && mkfs.ext4 -q -m 0 "$0" && mount -o loop,errors=remount-ro "$0" "$1"';
      await run('sh', ['-c', make, join(folder.path, 'image'), disk]);
      const dataSource: DataSource = await connectDatabase(
        dataSourceOptions(loadConfig({ overrides: { dataDir: disk } }), 'image', [thing], [tablesOf([thing])]),
      );
      try {
        const rows = dataSource.getRepository(thing);
        const text = 'x'.repeat(1_000_000);
        await rows.insert({ id: 1, text });
        await disturb();
        const writes: [string, () => Promise<unknown>][] = [
          ['insert', () => rows.insert({ id: 2, text: text.repeat(5) })],
          [
            'atomically',
            () =>
              atomically(dataSource, [
                rows
                  .createQueryBuilder()
                  .insert()
                  .values({ id: 3, text: text.repeat(5) }),
              ]),
          ],
          [
            'runUnflushed',
            () =>
              runUnflushed(
                dataSource,
                rows
                  .createQueryBuilder()
                  .update()
                  .set({ text: text.repeat(6) })
                  .where({ id: 1 }),
              ),
          ],
        ];
        for (const [name, write] of writes)
          expect(translateDatabaseError(await write().catch((error: unknown) => error)), name).toMatchObject({
            code,
            family: 'unavailable',
          });
        expect((await rows.findOneByOrFail({ id: 1 })).text).toBe(text);
        if (!mend) return;
        await mend();
        for (const [, write] of writes) await write();
        expect(await rows.count()).toBe(3);
      } finally {
        await dataSource.destroy();
      }
    },
  );
});
