/**
 * No image is ever lost: backups, restores, prunes, garbage collections and upgrades of the DU whose worker, Redis or
 * registry is killed at a chosen point. Afterwards everything that was complete before is served with its digest, every
 * backup restores, and nothing half is left.
 */
import { execFile, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { chmod, mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { openBackup } from '@airdock/backup-store/backup-source';
import { BackupStore } from '@airdock/backup-store/backup-store';
import { FolderStorage } from '@airdock/backup-store/folder-storage';
import {
  createBackup,
  createBackupOperation,
  createBackupSchedule,
  createDuUpgrade,
  createGarbageCollection,
  createRestore,
  createVerification,
  deleteBackup,
  deleteBackupSchedule,
  deleteImage,
  getBackup,
  getBackupOperation,
  getDuUpgrade,
  getGarbageCollection,
  getJob,
  getRegistry,
  getRestore,
  listBackups,
  listBackupTargets,
  listImages,
  listJobs,
  retryJob,
} from '@airdock/clients/generated/sdk.gen';
import type { Backup, BackupAction, Job, RetentionPolicy } from '@airdock/clients/generated/types.gen';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { digestOfFile } from '@airdock/disk/files/hash-pool';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { findProgram, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { push, register } from '../support/bundles.js';
import {
  type FaultSite,
  filesBelow,
  namesIn,
  startEmbeddedSite,
  startSiteApart,
  stepUntil,
  type Victim,
} from '../support/fault-site.js';
import { endOf, resourceId, success } from '../support/jobs.js';
import { processesOf } from '../support/processes.js';
import { digestAt, namesAt } from '../support/registry.js';
import type { ServiceName, ServiceProcess, Services } from '../support/services.js';

const run = promisify(execFile);
/** Gives a process a clock of its own. */
const fakeClock = ['x86_64', 'aarch64']
  .map((machine) => `/usr/lib/${machine}-linux-gnu/faketime/libfaketimeMT.so.1`)
  .find((path) => existsSync(path));
if (!fakeClock) process.stderr.write('clocks that are set back, schedules: skipped: no libfaketime\n');

type Form = 'embedded' | 'apart';
/** A DU in whose registry are the images `base-*` and `extra-*`, and in whose store is a backup of the former. */
interface Site extends FaultSite {
  form: Form;
  store: string;
  /** Of the registry. */
  storage: string;
  oldBundleId: string;
  upgrades: number;
}
type SiteApart = Site & { services: Services };

/** Images that share a layer, of sizes that take a moment. */
const images = {
  base: { count: 4, shared: { base: 20_000_000 }, own: 8_000_000 },
  extra: { count: 4, shared: { base: 20_000_000, extra: 12_000_000 }, own: 11_000_000 },
  old: { count: 2, shared: { base: 20_000_000 }, own: 6_000_000 },
};
const baseRepositories = ['base-*', 'k8s.gcr.io/base-*'];
const nameCount = 2 * (images.base.count + images.extra.count);

let bundles: TempDir;
beforeAll(async () => {
  bundles = await tempDir('fault-bundles');
  for (const [name, { count, shared, own }] of Object.entries(images)) {
    const layers = Object.entries(shared).map(([seed, randomBytes]) => ({ randomBytes, seed }));
    const made = [];
    for (let index = 0; index < count; index++)
      made.push(
        await makeImage({
          name: `k8s.gcr.io/${name}-${index}:v1`,
          layers: [...layers, { randomBytes: own, seed: `${name} ${index}` }],
        }),
      );
    await buildOciArchive(join(bundles.path, `${name}.tar`), made);
  }
  await sites.start(['embedded', 'embedded', 'apart', 'apart']);
});
afterAll(async () => {
  await sites[Symbol.asyncDispose]();
  await bundles?.remove();
});

async function startSite(form: Form): Promise<Site> {
  const folder = await tempDir(`faults-${form}`);
  const targets = Object.fromEntries(
    ['small', 'plug', 'fresh'].map((name) => [name, { folder: join(folder.path, name) }]),
  );
  const airdock = { backupDir: join(folder.path, 'store'), backup: { targets }, duVersion: 'v-5.2.0-1500000' };
  const started =
    form === 'embedded'
      ? startEmbeddedSite(folder.path, { bundleDir: bundles.path, airdock })
      : startSiteApart(folder.path, bundles.path, airdock);
  const site: Site = { ...(await started), form, store: airdock.backupDir, storage: '', oldBundleId: '', upgrades: 0 };
  site.storage = join(site.dataDir, 'registry/storage');
  const stop = site[Symbol.asyncDispose];
  site[Symbol.asyncDispose] = async () => {
    await stop();
    await folder.remove();
  };
  const client = site.client('image');
  for (const name of ['base', 'extra']) await push(client, await register(client, join(bundles.path, `${name}.tar`)));
  site.oldBundleId = await register(client, join(bundles.path, 'old.tar'));
  await makeBackup(site, { repositories: baseRepositories });
  return site;
}

/** Sites that are used again and again, each by one test at a time; one in which a test failed is replaced. */
class Sites implements AsyncDisposable {
  readonly #free = new Map<Form, Site[]>();
  readonly #waiting: { form: Form; give: (site: Site) => void }[] = [];

  async start(forms: readonly Form[]): Promise<void> {
    for (const site of await Promise.all(forms.map(startSite))) this.#giveBack(site);
  }

  async with(form: Form, work: (site: Site) => Promise<void>): Promise<void> {
    const site = this.#free.get(form)?.pop() ?? (await new Promise<Site>((give) => this.#waiting.push({ form, give })));
    try {
      await work(site);
    } catch (error) {
      process.stderr.write(`${site.output()}\n`);
      await site[Symbol.asyncDispose]();
      this.#giveBack(await startSite(form));
      throw error;
    }
    this.#giveBack(site);
  }

  #giveBack(site: Site): void {
    const next = this.#waiting.findIndex(({ form }) => form === site.form);
    if (next >= 0) this.#waiting.splice(next, 1)[0]?.give(site);
    else this.#free.set(site.form, [...(this.#free.get(site.form) ?? []), site]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#free.values()].flat().map((site) => site[Symbol.asyncDispose]()));
  }
}

// What is done with a site

/** Newest first. */
const backupsOf = async (site: Site, target = 'default'): Promise<Backup[]> =>
  (await listBackups({ client: site.client('backup'), query: { target }, throwOnError: true })).data.items;
const beginBackup = async (site: Site, body: object = {}): Promise<Job> =>
  (await createBackup({ client: site.client('backup'), body, throwOnError: true })).data;
const makeBackup = async (site: Site, body: object = {}): Promise<string> =>
  resourceId(await success(site.client('backup'), await beginBackup(site, body)));
const backup = async (site: Site, id: string): Promise<Backup> =>
  (await getBackup({ client: site.client('backup'), path: { id }, throwOnError: true })).data;
async function restore(site: Site, backupId: string): Promise<void> {
  const client = site.client('backup');
  await success(client, createRestore({ client, body: { backupId }, throwOnError: true }));
}
const beginOperation = async (site: Site, operation: object, target = 'default'): Promise<Job> =>
  (
    await createBackupOperation({
      client: site.client('backup'),
      body: { target, operation: operation as BackupAction },
      throwOnError: true,
    })
  ).data;
const prune = async (site: Site, options: object = {}, target = 'default') =>
  success(site.client('backup'), await beginOperation(site, { action: 'prune', ...options }, target));

/** Everything but the newest backup of `base-*` goes from the store, so that a full one has something to do. */
async function keepOnlyBase(site: Site): Promise<void> {
  const client = site.client('backup');
  const [, ...others] = (await backupsOf(site)).toSorted((a, b) => Number(a.hasSettings) - Number(b.hasSettings));
  for (const { id } of others) await deleteBackup({ client, path: { id }, throwOnError: true });
  if (others.length > 0) await prune(site);
}

async function fullBackup(site: Site): Promise<string> {
  return (
    (await backupsOf(site)).find(({ hasSettings, state }) => hasSettings && state === 'complete')?.id ??
    makeBackup(site)
  );
}

const recordOf = async ({ store }: Site, id: string): Promise<BackupRecord> =>
  JSON.parse(await readFile(join(store, 'backups', `${id}.json`), 'utf8'));
const namesOf = ({ references }: BackupRecord): Record<string, Digest> =>
  Object.fromEntries(references.map(({ repository, tag, digest }) => [`${repository}:${tag}`, digest]));
const blobFolder = ({ storage }: Site, digest: Digest): string => {
  const hex = digestHex(digest);
  return join(storage, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex);
};
const repositoryFolder = ({ storage }: Site, repository: string): string =>
  join(storage, 'docker/registry/v2/repositories', repository);
const extraTags = (site: Site): string[] =>
  Array.from({ length: images.extra.count }, (_, index) => [`extra-${index}`, `k8s.gcr.io/extra-${index}`])
    .flat()
    .map((repository) => join(repositoryFolder(site, repository), '_manifests/tags/v1/current/link'));

/** Digests that only `extra-*` need. */
async function extraBlobs(site: Site): Promise<Digest[]> {
  const [full, ...others] = (await backupsOf(site)).toSorted((a, b) => Number(b.hasSettings) - Number(a.hasSettings));
  const kept = new Set((await recordOf(site, others.at(-1)?.id ?? '')).blobs.map(({ digest }) => digest));
  const { blobs, settings } = await recordOf(site, full?.id ?? '');
  return blobs
    .map(({ digest }) => digest)
    .filter((digest) => !kept.has(digest) && !settings.some((document) => document.digest === digest));
}

/** The disk of the registry has lost a part, or all. */
async function lose(site: Site, what: 'extra' | 'all'): Promise<void> {
  if (what === 'all') return rm(join(site.storage, 'docker'), { recursive: true });
  for (const link of extraTags(site)) await rm(join(link, '../../../../..'), { recursive: true, force: true });
  for (const digest of await extraBlobs(site)) await rm(blobFolder(site, digest), { recursive: true, force: true });
}

/** Names in the registry that hosts pull from, and where they lead. */
const contentOf = async ({ registryPort }: Site): Promise<Record<string, string | undefined>> =>
  Object.fromEntries(
    await Promise.all(
      (await namesAt(registryPort))
        .filter((name) => name.includes(':'))
        .map(async (name) => [name, await digestAt(registryPort, name)]),
    ),
  );

// What must hold

/** Every name leads to its digest, and all of its blobs are there; with `bytes` their content is read and hashed. */
async function expectServed(
  { registryPort }: Site,
  expected: Record<string, string | undefined>,
  { bytes }: { bytes: boolean },
): Promise<void> {
  const problems: string[] = [];
  const seen = new Set<string>();
  const accept =
    'application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json';
  for (const [name, digest] of Object.entries(expected)) {
    const [repository, tag] = name.split(':');
    const url = `http://localhost:${registryPort}/v2/${repository}`;
    const response = await fetch(`${url}/manifests/${tag}`, { headers: { accept } });
    const manifest = Buffer.from(await response.arrayBuffer());
    if (digestOf(manifest) !== digest) {
      problems.push(`${name}: ${response.status} ${digestOf(manifest)} instead of ${digest}`);
      continue;
    }
    const { config, layers } = JSON.parse(manifest.toString()) as {
      config: { digest: string; size: number };
      layers: { digest: string; size: number }[];
    };
    for (const blob of [config, ...layers]) {
      const isRead = bytes && !seen.has(blob.digest);
      seen.add(blob.digest);
      const found = await fetch(`${url}/blobs/${blob.digest}`, { method: isRead ? 'GET' : 'HEAD' });
      if (!found.ok || found.headers.get('content-length') !== String(blob.size))
        problems.push(`${name}: ${found.status} for ${blob.digest}`);
      const actual = isRead ? digestOf(Buffer.from(await found.arrayBuffer())) : blob.digest;
      if (actual !== blob.digest) problems.push(`${name}: the bytes of ${blob.digest} are those of ${actual}`);
    }
  }
  expect(problems).toEqual([]);
}

/** Every backup that is said to be complete restores, and nothing half is left, of whatever kind. */
async function expectWhole(site: Site): Promise<void> {
  await expectWholeStore(site);
  expect(namesIn(site.dataDir, 'drills')).toEqual([]);
  expect((await processesOf(join(site.dataDir, 'drills'))).filter((line) => line.includes(' serve '))).toEqual([]);
  expect(namesIn(site.storage, 'airdock-garbage')).toEqual([]);
  expect(existsSync(join(site.dataDir, 'du-upgrade.json'))).toBe(false);
  expect((await getRegistry({ client: site.client('registry'), throwOnError: true })).data).toMatchObject({
    fence: null,
    collecting: false,
    error: null,
  });
}

/** Of one target. Reads every blob. */
async function expectWholeStore(site: Site, target = 'default', folder = site.store): Promise<void> {
  await using store = await BackupStore.open(await FolderStorage.open(folder), { create: false });
  const listed = await store.listRecords();
  expect(listed.flatMap(({ error }) => error ?? [])).toEqual([]);
  const backups = (await backupsOf(site, target)).filter(({ state }) => state !== 'failed');
  expect(listed.map(({ id }) => id)).toEqual(backups.map(({ id }) => id).sort());
  expect(backups.filter(({ state }) => state !== 'complete')).toEqual([]);
  const index = await store.index();
  const blobs = new Map(listed.flatMap(({ record }) => record?.blobs ?? []).map((blob) => [blob.digest, blob]));
  for (const blob of blobs.values()) await store.verifyBlob(index, blob);
  for (const { id } of listed) {
    await using source = await openBackup(store, id);
    expect(source.broken).toEqual([]);
  }
  expect(namesIn(folder, 'locks')).toEqual([]);
  expect(namesIn(folder, 'damaged')).toEqual([]);
}

// Where a job is hit

/** A job that has just been begun. */
interface Look {
  site: Site;
  job: Job;
  id: string;
  /** Files of blobs in the store when it was begun. */
  blobsBefore: number;
  /** What a restore has to bring. */
  lost: Digest[];
  /** 0, then one more for each time that the place was missed. */
  tries: number;
}
type Place = (look: Look) => () => boolean;

const blobFiles = ({ store }: Site): string[] => filesBelow(store, 'blobs');
const isLocked = ({ site: { store }, job }: Look): boolean =>
  namesIn(store, 'locks').some((name) => name.endsWith(`-${job.id}.json`));
/** The lock of its job is there: it has neither ended nor failed. */
const locked =
  (isThere: (look: Look) => boolean = () => true): Place =>
  (look) =>
  () =>
    isLocked(look) && isThere(look);
const record = ({ site: { store }, id }: Look, suffix = ''): boolean =>
  existsSync(join(store, 'backups', `${id}.json${suffix}`));
const newBlobs = ({ site, blobsBefore }: Look): number => blobFiles(site).length - blobsBefore;
const isGrowing = (path: string): boolean => (statSync(path, { throwIfNoEntry: false })?.size ?? 0) > 0;
const isPart = (path: string): boolean => /\/[0-9a-f]{64}\.[^/]*part$/.test(path) && isGrowing(path);
const restored = ({ site, lost }: Look): number =>
  lost.filter((digest) => existsSync(join(blobFolder(site, digest), 'data'))).length;
const tags = ({ site }: Look): number => extraTags(site).filter((path) => existsSync(path)).length;
const aside = ({ site: { storage } }: Look, pattern: RegExp): number =>
  filesBelow(storage, 'airdock-garbage/aside').filter((path) => pattern.test(path)).length;
const condemned = ({ site: { storage } }: Look): string[] => filesBelow(storage, 'airdock-garbage/condemned');
const inPhase =
  (phase: string): Place =>
  ({ site: { dataDir } }) => {
    const path = join(dataDir, 'du-upgrade.json');
    return () => existsSync(path) && readFileSync(path, 'utf8').includes(`"phase": "${phase}"`);
  };
/** Milliseconds after its lock, from a seed; sooner each time that the job had ended by then. */
const moment =
  (seed: string, withinMs: number): Place =>
  (look) => {
    const waitMs = (createHash('sha256').update(seed).digest().readUInt16BE() % withinMs) / 2 ** look.tries;
    let since: number | undefined;
    return () => {
      if (!isLocked(look)) return false;
      since ??= performance.now();
      return performance.now() - since >= waitMs;
    };
  };
const accepted: Place = () => () => true;

interface JobKind {
  /** Whose worker runs it. */
  service: ServiceName;
  /** Makes sure that the job has work to do. */
  prepare(site: Site): Promise<void>;
  begin(site: Site): Promise<Job>;
  places: Record<string, Place>;
  /** What this kind has to have done. */
  check(site: Site, job: Job): Promise<void>;
}

const strayBlobs = 150;
/** Manifest, configuration and layer of each image, and what stands for each deleted name. */
const garbageBlobs = (3 + 2 * 2) * images.old.count;

type JobName = 'backup' | 'restore' | 'restore of everything' | 'drill' | 'prune' | 'garbage collection' | 'upgrade';
const kinds: Record<JobName, JobKind> = {
  backup: {
    service: 'backup',
    prepare: keepOnlyBase,
    begin: (site) => beginBackup(site),
    places: {
      'it was accepted': accepted,
      'its lock': locked((look) => newBlobs(look) === 0),
      'the first part of a blob': locked(({ site }) => filesBelow(site.store, 'tmp').some(isPart)),
      'the first blob': locked((look) => newBlobs(look) > 0),
      'half of the blobs': locked((look) => newBlobs(look) >= 9),
      'the checksum without its record': locked((look) => record(look, '.sha256') && !record(look)),
      'the record': locked((look) => record(look)),
      'a moment (1)': moment('backup 1', 300),
      'a moment (2)': moment('backup 2', 300),
      'a moment (3)': moment('backup 3', 300),
    },
    check: async (site, job) => {
      expect(await backup(site, resourceId(job))).toMatchObject({
        state: 'complete',
        images: nameCount,
        skipped: [],
        hasSettings: true,
      });
    },
  },
  restore: {
    service: 'backup',
    prepare: async (site) => {
      await fullBackup(site);
      await lose(site, 'extra');
    },
    begin: async (site) =>
      (
        await createRestore({
          client: site.client('backup'),
          body: { backupId: await fullBackup(site) },
          throwOnError: true,
        })
      ).data,
    places: {
      'it was accepted': accepted,
      'its lock': locked((look) => restored(look) === 0),
      'the first part of a blob': locked(
        ({ site: { storage } }) =>
          filesBelow(storage, 'airdock-incoming').some(isPart) ||
          filesBelow(storage, 'docker').some((path) => path.includes('/_uploads/')),
      ),
      'the first blob': locked((look) => restored(look) > 0),
      'half of the blobs': locked((look) => restored(look) >= look.lost.length / 2),
      'the first tag': locked((look) => tags(look) > 0),
      'half of the tags': locked((look) => tags(look) >= images.extra.count),
      'all tags': locked((look) => tags(look) === 2 * images.extra.count),
      'a moment (1)': moment('restore 1', 300),
      'a moment (2)': moment('restore 2', 300),
    },
    check: async (site, job) => {
      const { data } = await getRestore({
        client: site.client('backup'),
        path: { id: resourceId(job) },
        throwOnError: true,
      });
      expect(data.report).toMatchObject({ verified: nameCount, broken: [] });
      await expectServed(site, namesOf(await recordOf(site, data.backupId)), { bytes: true });
    },
  },
  'restore of everything': {
    service: 'backup',
    prepare: async (site) => {
      await fullBackup(site);
      await lose(site, 'all');
    },
    begin: (site) => kinds.restore.begin(site),
    places: {
      'the first blob': locked((look) => restored(look) > 0),
      'the first tag': locked((look) => tags(look) > 0),
    },
    check: (site, job) => kinds.restore.check(site, job),
  },
  drill: {
    service: 'backup',
    prepare: async (site) => void (await fullBackup(site)),
    begin: async (site) =>
      (
        await createRestore({
          client: site.client('backup'),
          body: { backupId: await fullBackup(site), drill: true },
          throwOnError: true,
        })
      ).data,
    places: {
      'its registry': locked(({ site: { dataDir }, id }) =>
        filesBelow(dataDir, 'drills', id, 'state').some((path) => path.endsWith('engine.log')),
      ),
      'its first blob': locked(({ site: { dataDir }, id }) =>
        filesBelow(dataDir, 'drills', id, 'storage').some((path) => path.endsWith('/data')),
      ),
    },
    check: async (site, job) => {
      const { data } = await getRestore({
        client: site.client('backup'),
        path: { id: resourceId(job) },
        throwOnError: true,
      });
      expect(data.report).toMatchObject({ verified: nameCount, broken: [] });
    },
  },
  prune: {
    service: 'backup',
    // Of the backups all but a new one of `base-*` will go, and what killed backups have left.
    prepare: async (site) => {
      await fullBackup(site);
      for (let index = 0; index < strayBlobs; index++) {
        const content = Buffer.from(`stray ${index}`);
        const hex = digestHex(digestOf(content));
        await mkdir(join(site.store, 'blobs/sha256', hex.slice(0, 2)), { recursive: true });
        await writeFile(join(site.store, 'blobs/sha256', hex.slice(0, 2), hex), content);
      }
      await writeFile(join(site.store, 'tmp', `${'0'.repeat(64)}.free.1.part`), 'of a machine that is gone');
      await makeBackup(site, { repositories: baseRepositories });
    },
    begin: (site) => beginOperation(site, { action: 'prune', keep: { last: 1 } }),
    places: {
      'it was accepted': accepted,
      'its lock': locked(),
      'a record that is gone, its checksum not': locked(({ site: { store } }) => {
        const names = new Set(namesIn(store, 'backups'));
        return [...names].some((name) => name.endsWith('.sha256') && !names.has(name.slice(0, -'.sha256'.length)));
      }),
      // A record, its checksum and its signature are left.
      'the records that are gone': locked(({ site: { store } }) => namesIn(store, 'backups').length === 3),
      'the first blob': locked((look) => newBlobs(look) < 0),
      'half of the blobs': locked((look) => newBlobs(look) < -strayBlobs / 2),
      'the last blob': locked(({ site }) => blobFiles(site).length <= 2 * images.base.count + images.base.count + 1),
      'a moment (1)': moment('prune 1', 60),
    },
    check: async (site) => {
      const [kept, ...others] = await backupsOf(site);
      expect(others).toEqual([]);
      const { blobs } = await recordOf(site, kept?.id ?? '');
      expect(blobFiles(site)).toHaveLength(blobs.length);
      expect(namesIn(site.store, 'backups').sort()).toEqual([
        `${kept?.id}.json`,
        `${kept?.id}.json.sha256`,
        `${kept?.id}.json.sig`,
      ]);
      expect(namesIn(site.store, 'tmp')).toEqual([]);
    },
  },
  'garbage collection': {
    service: 'registry',
    prepare: async (site) => {
      const client = site.client('image');
      await push(client, site.oldBundleId);
      const { data } = await listImages({ client, query: { search: 'k8s.gcr.io/old-' }, throwOnError: true });
      for (const { id } of data.items) await deleteImage({ client, path: { id }, throwOnError: true });
    },
    begin: async (site) =>
      (
        await createGarbageCollection({
          client: site.client('registry'),
          body: { protectHours: 0 },
          throwOnError: true,
        })
      ).data,
    places: {
      'it was accepted': accepted,
      'its folder': (look) => () => namesIn(look.site.storage, 'airdock-garbage').length > 0,
      'the first link of a layer': (look) => () => aside(look, /_layers/) > 0,
      'the first blob': (look) => () => aside(look, /aside\/blobs/) > 0,
      'all blobs': (look) => () => aside(look, /aside\/blobs/) === garbageBlobs,
      'its record': (look) => () => aside(look, /sweep\.json/) > 0,
      'what is condemned': (look) => () => condemned(look).length > 0,
      'what is condemned, in part': (look) => () =>
        condemned(look).length > 0 && condemned(look).filter((path) => path.endsWith('/data')).length < garbageBlobs,
    },
    check: async (site, job) => {
      const { data } = await getGarbageCollection({
        client: site.client('registry'),
        path: { id: resourceId(job) },
        throwOnError: true,
      });
      expect(data.freed).toMatchObject({ blobs: garbageBlobs });
      expect((await namesAt(site.registryPort)).filter((name) => name.includes('old-'))).toEqual([]);
    },
  },
  upgrade: {
    service: 'registry',
    prepare: async (site) => {
      await keepOnlyBase(site);
      site.upgrades += 1;
      await writeEngine(site);
    },
    begin: async (site) => {
      const body = {
        toVersion: 'v-5.3.0-1558488',
        engine: { binary: engineOf(site), digest: digestOf(readFileSync(engineOf(site))) },
      };
      return (await createDuUpgrade({ client: site.client('registry'), body, throwOnError: true })).data;
    },
    places: Object.fromEntries(
      ['backup', 'fence', 'finalBackup', 'engine', 'migrate', 'restore', 'compare', 'open'].map((phase) => [
        phase,
        inPhase(phase),
      ]),
    ),
    check: async (site, job) => {
      const client = site.client('registry');
      const { data } = await getDuUpgrade({ client, path: { id: resourceId(job) }, throwOnError: true });
      expect(data).toMatchObject({
        phase: 'done',
        error: null,
        report: { missing: [], changed: [], engineVersion: `2.9.${site.upgrades}` },
      });
    },
  },
};

const engineOf = ({ folder, form, upgrades }: Site): string =>
  join(bundles.path, `registry-${form}-${digestHex(digestOf(folder)).slice(0, 8)}-${upgrades}`);
/** The registry's program of a new release: the one that is there, under another number. */
async function writeEngine(site: Site): Promise<void> {
  const text = `#!/bin/sh\nif [ "$1" = --version ]; then echo "registry github.com/docker/distribution 2.9.${site.upgrades}"; exit; fi\n`;
  await writeFile(engineOf(site), `${text}exec ${findProgram('docker-registry')} "$@"\n`);
  await chmod(engineOf(site), 0o755);
}

interface Point {
  job: JobName;
  place: string;
  victim: Victim;
  form: Form;
  /** Whose worker is stopped at the place, and killed, when it is another's than the job's. */
  service?: ServiceName;
}

const sites = new Sites();

const jobNow = async (site: Site, service: ServiceName, { id }: Job): Promise<Job> =>
  (await getJob({ client: site.client(service), path: { id }, throwOnError: true })).data;
const isOver = async (site: Site, service: ServiceName, job: Job): Promise<boolean> =>
  (await jobNow(site, service, job)).finishedAt !== null;

/**
 * Lets a job run to the place, kills there, starts again what does not come back by itself, and waits for the job's
 * success, if need be by a retry.
 */
async function hit(
  site: Site,
  { job: name, place, victim, service }: Point,
): Promise<{ job: Job; before: Record<string, string | undefined> }> {
  const kind = kinds[name];
  const client = site.client(kind.service);
  const worker = service ?? kind.service;
  for (let tries = 0; tries < 8; tries++) {
    await kind.prepare(site);
    const before = await contentOf(site);
    const lost = name.startsWith('restore')
      ? (await extraBlobs(site)).filter((digest) => !existsSync(join(blobFolder(site, digest), 'data')))
      : [];
    if (name.startsWith('restore')) expect(lost.length).toBeGreaterThan(images.extra.count);
    const blobsBefore = blobFiles(site).length;
    const begun = await kind.begin(site);
    const isThere = (kind.places[place] as Place)({
      site,
      job: begun,
      id: resourceId(begun),
      blobsBefore,
      lost,
      tries,
    });
    if (!(await stepUntil(site.workerPid(worker), isThere, () => isOver(site, kind.service, begun)))) {
      await success(client, begun);
      continue;
    }
    await site.kill(victim, worker);
    if (victim !== 'worker') process.kill(site.workerPid(worker), 'SIGCONT');
    await site.revive(victim, worker);
    let job = await endOf(client, begun.id);
    for (let retries = 0; job.state === 'failed' && retries < 2; retries++) {
      process.stderr.write(`${name}, ${place}, ${victim}: retried after ${job.error?.code}: ${job.error?.detail}\n`);
      await retryJob({ client, path: { id: job.id }, throwOnError: true });
      job = await endOf(client, job.id);
    }
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    // Or it had ended before it was hit.
    if (victim === 'worker' && worker === kind.service && place !== 'it was accepted')
      expect(job.attempt).toBeGreaterThan(1);
    return { job, before };
  }
  throw new Error(`${place} was missed each time`);
}

const points = interleave([
  ...pointsOf('backup', 'worker', 'embedded', [
    'it was accepted',
    'its lock',
    'the first part of a blob',
    'half of the blobs',
    'the record',
    'a moment (1)',
  ]),
  ...pointsOf('backup', 'worker', 'apart', [
    'the first blob',
    'the checksum without its record',
    'a moment (2)',
    'a moment (3)',
  ]),
  ...pointsOf('backup', 'Redis', 'embedded', ['its lock', 'half of the blobs']),
  ...pointsOf('backup', 'Redis', 'apart', ['the record']),
  ...pointsOf('backup', 'read-write registry', 'apart', ['its lock', 'the first part of a blob', 'half of the blobs']),
  ...pointsOf('backup', 'read-only registry', 'embedded', ['the first blob']),
  ...pointsOf('backup', 'read-write registry', 'embedded', ['its lock']),

  ...pointsOf('restore', 'worker', 'embedded', [
    'its lock',
    'the first part of a blob',
    'the first blob',
    'half of the blobs',
    'a moment (1)',
  ]),
  ...pointsOf('restore', 'worker', 'apart', [
    'the first part of a blob',
    'half of the tags',
    'all tags',
    'a moment (2)',
  ]),
  ...pointsOf('restore of everything', 'worker', 'embedded', ['the first tag']),
  ...pointsOf('restore', 'Redis', 'apart', ['the first blob']),
  ...pointsOf('restore of everything', 'Redis', 'embedded', ['the first blob']),
  ...pointsOf('restore', 'read-write registry', 'apart', ['the first part of a blob', 'half of the blobs']),
  ...pointsOf('restore', 'read-write registry', 'embedded', ['the first tag']),
  ...pointsOf('restore', 'read-only registry', 'embedded', ['half of the tags']),
  ...pointsOf('drill', 'worker', 'embedded', ['its registry', 'its first blob']),

  ...pointsOf('prune', 'worker', 'embedded', [
    'its lock',
    'the records that are gone',
    'half of the blobs',
    'a moment (1)',
  ]),
  ...pointsOf('prune', 'worker', 'apart', [
    'it was accepted',
    'a record that is gone, its checksum not',
    'the first blob',
    'the last blob',
  ]),
  ...pointsOf('prune', 'Redis', 'embedded', ['half of the blobs']),
  ...pointsOf('prune', 'Redis', 'apart', ['its lock']),
  ...pointsOf('prune', 'read-write registry', 'embedded', ['the first blob']),

  ...pointsOf('garbage collection', 'worker', 'embedded', [
    'the first link of a layer',
    'all blobs',
    'its record',
    'what is condemned, in part',
  ]),
  ...pointsOf('garbage collection', 'worker', 'apart', [
    'it was accepted',
    'its folder',
    'the first blob',
    'what is condemned',
  ]),
  ...pointsOf('garbage collection', 'Redis', 'apart', ['the first blob']),
  ...pointsOf('garbage collection', 'Redis', 'embedded', ['what is condemned']),
  ...pointsOf('garbage collection', 'read-write registry', 'embedded', ['the first link of a layer']),
  ...pointsOf('garbage collection', 'read-only registry', 'apart', ['the first blob']),

  // Its worker is killed at each of nine phases in du-upgrade.e2e.ts.
  ...pointsOf('upgrade', 'worker', 'apart', ['backup', 'engine']),
  ...pointsOf('upgrade', 'worker', 'apart', ['finalBackup', 'restore'], 'backup'),
  ...pointsOf('upgrade', 'Redis', 'embedded', ['backup', 'engine']),
  ...pointsOf('upgrade', 'Redis', 'apart', ['compare']),
  ...pointsOf('upgrade', 'read-write registry', 'embedded', ['fence', 'restore', 'open']),
  ...pointsOf('upgrade', 'read-write registry', 'apart', ['engine']),
  ...pointsOf('upgrade', 'read-only registry', 'embedded', ['migrate', 'compare']),
]);

function pointsOf(job: Point['job'], victim: Victim, form: Form, places: string[], service?: ServiceName): Point[] {
  return places.map((place) => ({ job, place, victim, form, ...(service && { service }) }));
}

/** So that all sites have something to do all the while. */
function interleave(all: Point[]): Point[] {
  const [embedded, apart] = (['embedded', 'apart'] as const).map((form) =>
    all.filter((point) => point.form === form),
  ) as [Point[], Point[]];
  const share = (list: Point[]) => list.map((point, index) => ({ point, at: (index + 0.5) / list.length }));
  return [...share(embedded), ...share(apart)].sort((a, b) => a.at - b.at).map(({ point }) => point);
}

describe('no image and no backup is lost when', () => {
  it.concurrent.each(points.map((point, index) => ({ ...point, index })))(
    'a $job meets the death of the $victim at: $place ($form)',
    async (point) => {
      await sites.with(point.form, async (site) => {
        const { job, before } = await hit(site, point);
        await expectServed(site, before, { bytes: point.job === 'garbage collection' || point.index % 4 === 0 });
        await kinds[point.job].check(site, job);
        await expectWhole(site);
        if (point.index % 10 > 0) return;
        // A backup is good when it restores.
        const [newest] = await backupsOf(site);
        await lose(site, 'all');
        await restore(site, newest?.id ?? '');
        const saved = namesOf(await recordOf(site, newest?.id ?? ''));
        await expectServed(site, saved, { bytes: true });
        if (Object.keys(saved).length < nameCount)
          await push(site.client('image'), await register(site.client('image'), join(bundles.path, 'extra.tar')));
      });
    },
  );
});

/** Whether this user may mount here, which a container may forbid. */
const mayMount = spawnSync('unshare', ['--mount', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']).status === 0;
if (!mayMount) process.stderr.write('disks that are full or unplugged: skipped: this user may not mount\n');

/**
 * A full backup to a target, whose worker is stopped when half of the blobs are there. Whoever gets it lets the worker
 * go on.
 */
async function stoppedBackup(site: Site, target: string, folder: string): Promise<Job> {
  for (let tries = 0; tries < 8; tries++) {
    const before = filesBelow(folder, 'blobs').length;
    const job = await beginBackup(site, { target });
    const isHalf = () =>
      filesBelow(folder, 'blobs').length >= before + 2 &&
      !existsSync(join(folder, 'backups', `${resourceId(job)}.json`));
    if (await stepUntil(site.workerPid('backup'), isHalf, () => isOver(site, 'backup', job))) return job;
    await deleteBackup({ client: site.client('backup'), path: { id: resourceId(job) }, throwOnError: true });
    await prune(site, {}, target);
  }
  throw new Error('the backup was too fast each time');
}
const goOn = (site: Site) => process.kill(site.workerPid('backup'), 'SIGCONT');

async function mount(...args: string[]): Promise<AsyncDisposable> {
  const folder = args.at(-1) ?? '';
  await run('mount', args);
  return {
    [Symbol.asyncDispose]: async () => void ((await isMounted(folder)) && (await run('umount', ['--lazy', folder]))),
  };
}

const isMounted = async (folder: string) => (await readFile('/proc/self/mountinfo', 'utf8')).includes(` ${folder} `);

describe.skipIf(!mayMount)('the disk of a target', () => {
  it.concurrent('that is full fails a backup before or in the middle, leaves nothing half, and is gone on with when there is room', () =>
    sites.with('embedded', async (site) => {
      const client = site.client('backup');
      const disk = join(site.folder, 'small');
      await mkdir(disk, { recursive: true });
      await using _disk = await mount('-t', 'tmpfs', '-o', 'size=150m', 'tmpfs', disk);
      const earlier = await makeBackup(site, { target: 'small', repositories: baseRepositories });
      const filler = join(disk, 'lost+found');
      const expectNothingHalf = async (job: Job) => {
        expect(job).toMatchObject({ state: 'failed', error: { code: 'space_insufficient' } });
        expect(await backup(site, resourceId(job))).toMatchObject({ state: 'failed' });
        expect(namesIn(disk, 'backups')).toEqual([`${earlier}.json`, `${earlier}.json.sha256`, `${earlier}.json.sig`]);
        expect(namesIn(disk, 'tmp')).toEqual([]);
        await expectWholeStore(site, 'small', disk);
      };
      await run('fallocate', ['--length', '50M', filler]);
      const refused = await endOf(client, (await beginBackup(site, { target: 'small' })).id);
      expect(refused.progress.bytesDone).toBe(0);
      await expectNothingHalf(refused);
      await rm(filler);

      const begun = await stoppedBackup(site, 'small', disk);
      await fill(filler);
      goOn(site);
      await expectNothingHalf(await endOf(client, begun.id));
      await rm(filler);
      await retryJob({ client, path: { id: begun.id }, throwOnError: true });
      await success(client, begun);
      expect(await backup(site, resourceId(begun))).toMatchObject({ state: 'complete', images: nameCount });
      await expectWholeStore(site, 'small', disk);
      for (const { id } of await backupsOf(site, 'small'))
        await deleteBackup({ client, path: { id }, throwOnError: true });
    }));

  it.concurrent('that is unplugged in the middle gets nothing below its mount, and the backup goes on when it is back', () =>
    sites.with('embedded', async (site) => {
      const client = site.client('backup');
      const [content, disk] = [join(site.folder, 'content'), join(site.folder, 'plug')];
      for (const folder of [content, disk]) await mkdir(folder, { recursive: true });
      await using _before = await mount('--bind', content, disk);
      await makeBackup(site, { target: 'plug', repositories: baseRepositories });
      const id = await readFile(join(disk, 'ID'), 'utf8');
      const begun = await stoppedBackup(site, 'plug', disk);
      await run('umount', ['--lazy', disk]);
      goOn(site);
      const targetError = async () =>
        (await listBackupTargets({ client, throwOnError: true })).data.items.find(({ name }) => name === 'plug')?.error
          ?.code;
      const isQueued = async () => {
        const { state, error } = await jobNow(site, 'backup', begun);
        expect(error).toBeNull();
        return state === 'queued';
      };
      await waitFor(isQueued, { what: 'the backup to be tried again later', timeoutMs: 30_000 });
      expect(await targetError()).toBe('backup_target_unavailable');
      const second = (await jobNow(site, 'backup', begun)).attempt + 1;
      await waitFor(async () => (await jobNow(site, 'backup', begun)).attempt > second, {
        what: 'more tries',
        timeoutMs: 60_000,
      });
      expect(await readdir(disk, { recursive: true })).toEqual([]);
      await using _after = await mount('--bind', content, disk);
      await success(client, begun);
      expect(await readFile(join(disk, 'ID'), 'utf8')).toBe(id);
      expect(await targetError()).toBeUndefined();
      await expectWholeStore(site, 'plug', disk);
      for (const { id } of await backupsOf(site, 'plug'))
        await deleteBackup({ client, path: { id }, throwOnError: true });
    }));
});

/** Writes until the disk is full. */
async function fill(path: string): Promise<void> {
  const { stderr } = await run('sh', ['-c', 'cat /dev/zero >"$0" || true', path]);
  expect(stderr).toContain('No space left');
}

async function flipBit(path: string): Promise<void> {
  await using file = await open(path, 'r+');
  const { buffer } = await file.read(Buffer.alloc(1), 0, 1, 1_000_000);
  await file.write(Buffer.from([(buffer[0] ?? 0) ^ 1]), 0, 1, 1_000_000);
}

describe('a bit that was flipped', () => {
  it.concurrent('is found, named, and healed from where the bytes are right, or it is said what is lost', () =>
    sites.with('embedded', async (site) => {
      const client = site.client('backup');
      await keepOnlyBase(site);
      const id = await fullBackup(site);
      const before = await contentOf(site);
      const { blobs } = await recordOf(site, id);
      const unshared = new Set(await extraBlobs(site));
      // The layer that one image has for itself.
      const [damaged] = blobs
        .filter(({ digest, size }) => unshared.has(digest) && size > 1_500_000)
        .toSorted((a, b) => a.size - b.size);
      const digest = damaged?.digest as Digest;
      const inStore = join(site.store, 'blobs/sha256', digestHex(digest).slice(0, 2), digestHex(digest));
      const inRegistry = join(blobFolder(site, digest), 'data');
      const names = await namesWith(site, digest);
      const verify = async () => {
        const job = await endOf(client, (await beginOperation(site, { action: 'verify' })).id);
        return {
          job,
          result: (await getBackupOperation({ client, path: { id: resourceId(job) }, throwOnError: true })).data.result,
        };
      };

      await flipBit(inStore);
      expect(await verify()).toMatchObject({
        job: { state: 'succeeded' },
        result: { damaged: [digest], healed: [digest], lost: [] },
      });
      expect(await digestOfFile(inStore)).toBe(digest);

      await flipBit(inStore);
      await flipBit(inRegistry);
      expect(await verify()).toMatchObject({
        job: { state: 'failed', error: { code: 'backup_corrupt', detail: expect.stringContaining(digest) as string } },
        result: { damaged: [digest], healed: [], lost: [{ digest, backups: [id], images: names }] },
      });
      expect(await backup(site, id)).toMatchObject({ state: 'damaged', damaged: [digest] });

      // A new backup does not take it over, neither into this store nor into another.
      for (const target of ['default', 'fresh']) {
        const partial = await backup(site, await makeBackup(site, { target }));
        expect(partial).toMatchObject({ state: 'complete', images: nameCount - names.length });
        expect(partial.skipped?.map(({ name }) => name)).toEqual(names);
        for (const { reason } of partial.skipped ?? []) expect(reason).toContain(digest);
        await deleteBackup({ client, path: { id: partial.id }, throwOnError: true });
      }
      expect(existsSync(inStore)).toBe(false);

      // Somebody carried the image in again.
      await flipBit(inRegistry);
      expect(await verify()).toMatchObject({
        job: { state: 'succeeded' },
        result: { damaged: [digest], healed: [digest], lost: [] },
      });
      expect(await backup(site, id)).toMatchObject({ state: 'complete', damaged: [] });

      // The registry's are wrong, the store's are not.
      await flipBit(inRegistry);
      await makeBackup(site);
      expect(await digestOfFile(inStore)).toBe(digest);
      const verified = createVerification({
        client: site.client('image'),
        body: { quarantine: true },
        throwOnError: true,
      });
      expect(await endOf(site.client('image'), (await verified).data.id)).toMatchObject({
        state: 'failed',
        error: { code: 'images_damaged' },
      });
      await restore(site, id);
      await expectServed(site, before, { bytes: true });
      await rm(join(site.store, 'damaged'), { recursive: true });
      await expectWhole(site);
    }));
});

/** Names of a full backup that need a blob. */
async function namesWith(site: Site, digest: Digest): Promise<string[]> {
  const names: string[] = [];
  for (const [name, root] of Object.entries(namesOf(await recordOf(site, await fullBackup(site))))) {
    const manifest = await readFile(join(blobFolder(site, root), 'data'), 'utf8');
    if (manifest.includes(digest)) names.push(name);
  }
  return names;
}

/**
 * Workers of backup-svc alone, whose clock is that of the machine and so many milliseconds, which may change while they
 * run.
 */
async function startWorkersWithClock(
  site: SiteApart,
  count: number,
): Promise<{ workers: ServiceProcess[]; setClock(offsetMs: number): Promise<void> } & AsyncDisposable> {
  const usual = site.services.process('backup', 'worker');
  await usual.end();
  const file = join(site.folder, 'clock');
  const setClock = async (offsetMs: number) => {
    // They read it all the time.
    await writeFile(`${file}.new`, `${offsetMs < 0 ? '' : '+'}${(offsetMs / 1000).toFixed(3)}\n`);
    await rename(`${file}.new`, file);
  };
  await setClock(0);
  const clock = {
    LD_PRELOAD: fakeClock,
    FAKETIME_TIMESTAMP_FILE: file,
    FAKETIME_NO_CACHE: '1',
    FAKETIME_DONT_FAKE_MONOTONIC: '1',
    NO_FAKE_STAT: '1',
  };
  const workers = await Promise.all(Array.from({ length: count }, () => site.services.addWorker('backup', clock)));
  return {
    workers,
    setClock,
    [Symbol.asyncDispose]: async () => {
      await Promise.all(workers.map((worker) => worker.end()));
      await usual.start();
    },
  };
}

const dayMs = 24 * 60 * 60 * 1000;
/** An offset with which a clock that has this one is two seconds before its next minute. */
const beforeTheMinute = (offsetMs: number): number => offsetMs + 58_000 - ((Date.now() + offsetMs) % 60_000);

describe.skipIf(!fakeClock)('a clock', () => {
  it.concurrent('that is set back in the middle, or while the worker is dead, loses nothing and keeps nothing waiting', () =>
    sites.with('apart', async (site) => {
      const client = site.client('backup');
      await keepOnlyBase(site);
      await using clock = await startWorkersWithClock(site as SiteApart, 1);
      const [worker] = clock.workers as [ServiceProcess];
      const stepped: Site = { ...site, workerPid: () => worker.pid };
      const first = await stoppedBackup(stepped, 'default', site.store);
      await clock.setClock(-dayMs);
      goOn(stepped);
      await success(client, first);
      const second = await makeBackup(site);
      const [older, newer] = [await recordOf(site, resourceId(first)), await recordOf(site, second)];
      expect(newer.createdAt < older.createdAt).toBe(true);
      expect(newer.sequence).toBeGreaterThan(older.sequence);
      await prune(site, { keep: { last: 1 } });
      expect((await backupsOf(site)).map(({ id }) => id)).toEqual([second]);
      await expectWhole(site);

      await deleteBackup({ client, path: { id: second }, throwOnError: true });
      await makeBackup(site, { repositories: baseRepositories });
      await prune(site);
      await clock.setClock(0);
      const killed = await stoppedBackup(stepped, 'default', site.store);
      await worker.end('SIGKILL');
      await clock.setClock(-dayMs);
      await worker.start();
      await success(client, killed);
      await expectWhole(site);

      // The schedule has been looked at a day later than it is now.
      const { data: schedule } = await createBackupSchedule({
        client,
        body: { name: 'back', cron: '* * * * *' },
        throwOnError: true,
      });
      await clock.setClock(beforeTheMinute(-dayMs));
      const scheduled = async () =>
        (await backupsOf(site)).find(({ scheduleId, state }) => scheduleId === schedule.id && state === 'complete');
      await waitFor(scheduled, { what: 'the schedule to go by the new time', timeoutMs: 30_000 });
      await deleteBackupSchedule({ client, path: { id: schedule.id }, throwOnError: true });
      await expectWhole(site);
    }));

  it.concurrent('on which two schedules come at once gives each one backup by two workers, and prunes leave what they keep', () =>
    sites.with('apart', async (site) => {
      const client = site.client('backup');
      await using clock = await startWorkersWithClock(site as SiteApart, 2);
      const names = ['one', 'two'];
      const create = (name: string) =>
        createBackupSchedule({
          client,
          body: { name, cron: '* * * * *', keep: { last: 1 } as RetentionPolicy },
          throwOnError: true,
        }).then(({ data }) => data.id);
      const ids = await Promise.all(names.map(create));
      const made = new Set<string>();
      const ofSchedule = async (id: string) => {
        const found = (await backupsOf(site)).filter(({ scheduleId }) => scheduleId === id);
        for (const each of found) made.add(each.id);
        return found;
      };
      let offsetMs = 0;
      for (let minute = 0; minute < 2; minute++) {
        const before = new Set(made);
        offsetMs = beforeTheMinute(offsetMs);
        await clock.setClock(offsetMs);
        await waitFor(
          async () => {
            const each = await Promise.all(ids.map(ofSchedule));
            return each.every((list) => list.length === 1 && list[0]?.state === 'complete' && !before.has(list[0].id));
          },
          { what: 'each schedule to have its new backup alone', timeoutMs: 50_000, intervalMs: 100 },
        );
      }
      for (const id of ids) await deleteBackupSchedule({ client, path: { id }, throwOnError: true });
      expect(made.size).toBe(2 * ids.length);
      for (const type of ['backup.create', 'backup.prune']) {
        await waitFor(
          async () =>
            (await listJobs({ client, query: { type, state: 'running' }, throwOnError: true })).data.items.length === 0,
        );
        expect((await listJobs({ client, query: { type, state: 'failed' }, throwOnError: true })).data.items).toEqual(
          [],
        );
      }
      await expectWhole(site);
    }));
});
