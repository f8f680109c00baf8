/**
 * No image is ever lost: backups, restores, prunes, garbage collections and upgrades of the DU whose worker, Redis or registry is killed at a chosen point.
 * Afterwards everything that was complete before is served with its digest, every backup restores, and nothing half is left.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { chmod, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  createBackup,
  createBackupOperation,
  createDuUpgrade,
  createGarbageCollection,
  createRestore,
  deleteBackup,
  deleteImage,
  getBackup,
  getDuUpgrade,
  getGarbageCollection,
  getJob,
  getRegistry,
  getRestore,
  listBackups,
  listImages,
  retryJob,
} from '@airdock/adapters/api-clients/generated/sdk.gen';
import type { Backup, BackupAction, Job } from '@airdock/adapters/api-clients/generated/types.gen';
import { openBackup } from '@airdock/adapters/backup-store/backup-source';
import { BackupStore } from '@airdock/adapters/backup-store/backup-store';
import { FolderStorage } from '@airdock/adapters/backup-store/folder-storage';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { findProgram, type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { push, register } from '../support/bundles.js';
import { type FaultSite, filesBelow, namesIn, startEmbeddedSite, startSiteApart, stepUntil, type Victim } from '../support/fault-site.js';
import { endOf, resourceId, success } from '../support/jobs.js';
import { processesOf } from '../support/processes.js';
import { digestAt, namesAt } from '../support/registry.js';
import type { ServiceName } from '../support/services.js';

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

/** Images that share a layer, of sizes that take a moment. */
const images = {
  base: { count: 4, shared: { base: 20_000_000 }, own: 8_000_000 },
  extra: { count: 4, shared: { base: 20_000_000, extra: 12_000_000 }, own: 12_000_000 },
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
      made.push(await makeImage({ name: `k8s.gcr.io/${name}-${index}:v1`, layers: [...layers, { randomBytes: own, seed: `${name} ${index}` }] }));
    await buildOciArchive(join(bundles.path, `${name}.tar`), made);
  }
});
afterAll(() => bundles?.remove());

async function startSite(form: Form): Promise<Site> {
  const folder = await tempDir(`faults-${form}`);
  const airdock = { backupDir: join(folder.path, 'store'), duVersion: 'v-5.2.0-1500000' };
  const started =
    form === 'embedded' ? startEmbeddedSite(folder.path, { bundleDir: bundles.path, airdock }) : startSiteApart(folder.path, bundles.path, airdock);
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

const backupsOf = async (site: Site): Promise<Backup[]> => (await listBackups({ client: site.client('backup'), throwOnError: true })).data.items;
async function makeBackup(site: Site, body: object = {}): Promise<string> {
  const client = site.client('backup');
  return resourceId(await success(client, createBackup({ client, body, throwOnError: true })));
}
const begin = async (site: Site, operation: object): Promise<Job> =>
  (await createBackupOperation({ client: site.client('backup'), body: { operation: operation as BackupAction }, throwOnError: true })).data;
const prune = async (site: Site, options: object = {}) => success(site.client('backup'), await begin(site, { action: 'prune', ...options }));

/** Everything but the newest backup of `base-*` goes from the store, so that a full one has something to do. */
async function keepOnlyBase(site: Site): Promise<void> {
  const client = site.client('backup');
  const [, ...others] = (await backupsOf(site)).toSorted((a, b) => Number(a.hasSettings) - Number(b.hasSettings));
  for (const { id } of others) await deleteBackup({ client, path: { id }, throwOnError: true });
  if (others.length > 0) await prune(site);
}

async function fullBackup(site: Site): Promise<string> {
  return (await backupsOf(site)).find(({ hasSettings, state }) => hasSettings && state === 'complete')?.id ?? makeBackup(site);
}

const recordOf = async ({ store }: Site, id: string): Promise<BackupRecord> => JSON.parse(await readFile(join(store, 'backups', `${id}.json`), 'utf8'));
const blobFolder = ({ storage }: Site, digest: Digest): string => {
  const hex = digestHex(digest);
  return join(storage, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex);
};
const repositoryFolder = ({ storage }: Site, repository: string): string => join(storage, 'docker/registry/v2/repositories', repository);
const extraTags = (site: Site): string[] =>
  Array.from({ length: images.extra.count }, (_, index) => [`extra-${index}`, `k8s.gcr.io/extra-${index}`])
    .flat()
    .map((repository) => join(repositoryFolder(site, repository), '_manifests/tags/v1/current/link'));

/** Digests that only `extra-*` need. */
async function extraBlobs(site: Site): Promise<Digest[]> {
  const [full, base] = (await backupsOf(site)).toSorted((a, b) => Number(b.hasSettings) - Number(a.hasSettings));
  const kept = new Set((await recordOf(site, base?.id ?? '')).blobs.map(({ digest }) => digest));
  const { blobs, settings } = await recordOf(site, full?.id ?? '');
  return blobs.map(({ digest }) => digest).filter((digest) => !kept.has(digest) && !settings.some((document) => document.digest === digest));
}

/** The disk of the registry has lost a part, or all. */
async function lose(site: Site, what: 'extra' | 'all'): Promise<void> {
  if (what === 'all') return rm(join(site.storage, 'docker'), { recursive: true });
  for (const link of extraTags(site)) await rm(join(link, '../../../../..'), { recursive: true, force: true });
  for (const digest of await extraBlobs(site)) await rm(blobFolder(site, digest), { recursive: true, force: true });
}

/** Names in the registry that hosts pull from, and where they lead. */
const contentOf = async ({ readOnlyPort }: Site): Promise<Record<string, string | undefined>> =>
  Object.fromEntries(
    await Promise.all((await namesAt(readOnlyPort)).filter((name) => name.includes(':')).map(async (name) => [name, await digestAt(readOnlyPort, name)])),
  );

// What must hold

/** Every name leads to its digest, and all of its blobs are there; with `bytes` their content is read and hashed. */
async function expectServed({ readOnlyPort }: Site, expected: Record<string, string | undefined>, { bytes }: { bytes: boolean }): Promise<void> {
  const problems: string[] = [];
  const seen = new Set<string>();
  const accept = 'application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json';
  for (const [name, digest] of Object.entries(expected)) {
    const [repository, tag] = name.split(':');
    const url = `http://localhost:${readOnlyPort}/v2/${repository}`;
    const response = await fetch(`${url}/manifests/${tag}`, { headers: { accept } });
    const manifest = Buffer.from(await response.arrayBuffer());
    if (digestOf(manifest) !== digest) {
      problems.push(`${name}: ${response.status} ${digestOf(manifest)} instead of ${digest}`);
      continue;
    }
    const { config, layers } = JSON.parse(manifest.toString()) as { config: { digest: string; size: number }; layers: { digest: string; size: number }[] };
    for (const blob of [config, ...layers]) {
      const isRead = bytes && !seen.has(blob.digest);
      seen.add(blob.digest);
      const found = await fetch(`${url}/blobs/${blob.digest}`, { method: isRead ? 'GET' : 'HEAD' });
      if (!found.ok || found.headers.get('content-length') !== String(blob.size)) problems.push(`${name}: ${found.status} for ${blob.digest}`);
      const actual = isRead ? digestOf(Buffer.from(await found.arrayBuffer())) : blob.digest;
      if (actual !== blob.digest) problems.push(`${name}: the bytes of ${blob.digest} are those of ${actual}`);
    }
  }
  expect(problems).toEqual([]);
}

/** Every backup that is said to be complete restores, and nothing half is left, of whatever kind. */
async function expectWhole(site: Site): Promise<void> {
  await using store = await BackupStore.open(await FolderStorage.open(site.store), { create: false });
  const listed = await store.listRecords();
  expect(listed.flatMap(({ error }) => error ?? [])).toEqual([]);
  const backups = await backupsOf(site);
  expect(listed.map(({ id }) => id)).toEqual(backups.map(({ id }) => id).sort());
  expect(backups.filter(({ state }) => state !== 'complete')).toEqual([]);
  const index = await store.index();
  const blobs = new Map(listed.flatMap(({ record }) => record?.blobs ?? []).map((blob) => [blob.digest, blob]));
  for (const blob of blobs.values()) await store.verifyBlob(index, blob);
  for (const { id } of listed) {
    await using source = await openBackup(store, id);
    expect(source.broken).toEqual([]);
  }
  expect(namesIn(site.store, 'locks')).toEqual([]);
  expect(namesIn(site.store, 'damaged')).toEqual([]);
  expect(namesIn(site.dataDir, 'drills')).toEqual([]);
  expect((await processesOf(join(site.dataDir, 'drills'))).filter((line) => line.includes(' serve '))).toEqual([]);
  expect(namesIn(site.storage, 'airdock-garbage')).toEqual([]);
  expect(existsSync(join(site.dataDir, 'du-upgrade.json'))).toBe(false);
  expect((await getRegistry({ client: site.client('registry'), throwOnError: true })).data).toMatchObject({ fence: null, collecting: false, error: null });
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
const isLocked = ({ site: { store }, job }: Look): boolean => namesIn(store, 'locks').some((name) => name.endsWith(`-${job.id}.json`));
/** The lock of its job is there: it has neither ended nor failed. */
const locked =
  (isThere: (look: Look) => boolean = () => true): Place =>
  (look) =>
  () =>
    isLocked(look) && isThere(look);
const record = ({ site: { store }, id }: Look, suffix = ''): boolean => existsSync(join(store, 'backups', `${id}.json${suffix}`));
const newBlobs = ({ site, blobsBefore }: Look): number => blobFiles(site).length - blobsBefore;
const isGrowing = (path: string): boolean => (statSync(path, { throwIfNoEntry: false })?.size ?? 0) > 0;
const isPart = (path: string): boolean => /\/[0-9a-f]{64}\.[^/]*part$/.test(path) && isGrowing(path);
const restored = ({ site, lost }: Look): number => lost.filter((digest) => existsSync(join(blobFolder(site, digest), 'data'))).length;
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

type JobName = 'backup' | 'restore' | 'restore of everything' | 'drill' | 'prune' | 'garbage collection' | 'upgrade';
const kinds: Record<JobName, JobKind> = {
  backup: {
    service: 'backup',
    prepare: keepOnlyBase,
    begin: async (site) => (await createBackup({ client: site.client('backup'), body: {}, throwOnError: true })).data,
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
      const { data } = await getBackup({ client: site.client('backup'), path: { id: resourceId(job) }, throwOnError: true });
      expect(data).toMatchObject({ state: 'complete', images: nameCount, skipped: [], hasSettings: true });
    },
  },
  restore: {
    service: 'backup',
    prepare: async (site) => {
      await fullBackup(site);
      await lose(site, 'extra');
    },
    begin: async (site) => (await createRestore({ client: site.client('backup'), body: { backupId: await fullBackup(site) }, throwOnError: true })).data,
    places: {
      'it was accepted': accepted,
      'its lock': locked((look) => restored(look) === 0),
      'the first part of a blob': locked(
        ({ site: { storage } }) =>
          filesBelow(storage, 'airdock-incoming').some(isPart) || filesBelow(storage, 'docker').some((path) => path.includes('/_uploads/')),
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
      const { data } = await getRestore({ client: site.client('backup'), path: { id: resourceId(job) }, throwOnError: true });
      expect(data.report).toMatchObject({ verified: nameCount, broken: [] });
      const { references } = await recordOf(site, data.backupId);
      await expectServed(site, Object.fromEntries(references.map(({ repository, tag, digest }) => [`${repository}:${tag}`, digest])), { bytes: true });
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
      (await createRestore({ client: site.client('backup'), body: { backupId: await fullBackup(site), drill: true }, throwOnError: true })).data,
    places: {
      'its registry': locked(({ site: { dataDir }, id }) => filesBelow(dataDir, 'drills', id, 'state').some((path) => path.endsWith('engine.log'))),
      'its first blob': locked(({ site: { dataDir }, id }) => filesBelow(dataDir, 'drills', id, 'storage').some((path) => path.endsWith('/data'))),
    },
    check: async (site, job) => {
      const { data } = await getRestore({ client: site.client('backup'), path: { id: resourceId(job) }, throwOnError: true });
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
    begin: (site) => begin(site, { action: 'prune', keep: { last: 1 } }),
    places: {
      'it was accepted': accepted,
      'its lock': locked(),
      'a record that is gone, its checksum not': locked(({ site: { store } }) => {
        const names = new Set(namesIn(store, 'backups'));
        return [...names].some((name) => name.endsWith('.sha256') && !names.has(name.slice(0, -'.sha256'.length)));
      }),
      'the records that are gone': locked(({ site: { store } }) => namesIn(store, 'backups').length === 2),
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
      expect(namesIn(site.store, 'backups').sort()).toEqual([`${kept?.id}.json`, `${kept?.id}.json.sha256`]);
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
    begin: async (site) => (await createGarbageCollection({ client: site.client('registry'), body: { protectHours: 0 }, throwOnError: true })).data,
    places: {
      'it was accepted': accepted,
      'the first link': (look) => () => aside(look, /_manifests/) > 0,
      'the first link of a layer': (look) => () => aside(look, /_layers/) > 0,
      'the first blob': (look) => () => aside(look, /aside\/blobs/) > 0,
      'all blobs': (look) => () => aside(look, /aside\/blobs/) === 3 * images.old.count,
      'its record': (look) => () => aside(look, /sweep\.json/) > 0,
      'what is condemned': (look) => () => condemned(look).length > 0,
      'what is condemned, in part': (look) => () =>
        condemned(look).length > 0 && condemned(look).filter((path) => path.endsWith('/data')).length < 3 * images.old.count,
    },
    check: async (site, job) => {
      const { data } = await getGarbageCollection({ client: site.client('registry'), path: { id: resourceId(job) }, throwOnError: true });
      expect(data.freed).toMatchObject({ blobs: 3 * images.old.count });
      expect((await namesAt(site.readOnlyPort)).filter((name) => name.includes('old-'))).toEqual([]);
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
      const body = { toVersion: 'v-5.3.0-1558488', engine: { binary: engineOf(site) } };
      return (await createDuUpgrade({ client: site.client('registry'), body, throwOnError: true })).data;
    },
    places: Object.fromEntries(['backup', 'fence', 'finalBackup', 'engine', 'migrate', 'restore', 'compare', 'open'].map((phase) => [phase, inPhase(phase)])),
    check: async (site, job) => {
      const client = site.client('registry');
      const { data } = await getDuUpgrade({ client, path: { id: resourceId(job) }, throwOnError: true });
      expect(data).toMatchObject({ phase: 'done', error: null, report: { missing: [], changed: [], engineVersion: `2.9.${site.upgrades}` } });
    },
  },
};

const engineOf = ({ folder, form, upgrades }: Site): string => join(bundles.path, `registry-${form}-${digestHex(digestOf(folder)).slice(0, 8)}-${upgrades}`);
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

let sites: Sites;

/** Lets a job run to the place, kills there, starts again what does not come back by itself, and waits for the job's success, if need be by a retry. */
async function hit(site: Site, { job: name, place, victim, service }: Point): Promise<{ job: Job; before: Record<string, string | undefined> }> {
  const kind = kinds[name];
  const client = site.client(kind.service);
  const isOver = async ({ id }: Job) => (await getJob({ client, path: { id }, throwOnError: true })).data.finishedAt !== null;
  const worker = service ?? kind.service;
  for (let tries = 0; tries < 8; tries++) {
    await kind.prepare(site);
    const before = await contentOf(site);
    const lost = name.startsWith('restore') ? (await extraBlobs(site)).filter((digest) => !existsSync(join(blobFolder(site, digest), 'data'))) : [];
    const blobsBefore = blobFiles(site).length;
    const begun = await kind.begin(site);
    const isThere = (kind.places[place] as Place)({ site, job: begun, id: resourceId(begun), blobsBefore, lost, tries });
    if (!(await stepUntil(site.workerPid(worker), isThere, () => isOver(begun)))) {
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
    if (victim === 'worker' && worker === kind.service && place !== 'it was accepted') expect(job.attempt).toBeGreaterThan(1);
    return { job, before };
  }
  throw new Error(`${place} was missed each time`);
}

const points = interleave([
  ...pointsOf('backup', 'worker', 'embedded', ['it was accepted', 'its lock', 'the first part of a blob', 'half of the blobs', 'the record', 'a moment (1)']),
  ...pointsOf('backup', 'worker', 'apart', ['the first blob', 'the checksum without its record', 'a moment (2)', 'a moment (3)']),
  ...pointsOf('backup', 'Redis', 'embedded', ['its lock', 'half of the blobs']),
  ...pointsOf('backup', 'Redis', 'apart', ['the record']),
  ...pointsOf('backup', 'read-write registry', 'apart', ['its lock', 'the first part of a blob', 'half of the blobs']),
  ...pointsOf('backup', 'read-only registry', 'embedded', ['the first blob']),
  ...pointsOf('backup', 'read-write registry', 'embedded', ['its lock']),

  ...pointsOf('restore', 'worker', 'embedded', ['its lock', 'the first part of a blob', 'the first blob', 'half of the blobs', 'a moment (1)']),
  ...pointsOf('restore', 'worker', 'apart', ['the first part of a blob', 'half of the tags', 'all tags', 'a moment (2)']),
  ...pointsOf('restore of everything', 'worker', 'embedded', ['the first tag']),
  ...pointsOf('restore', 'Redis', 'apart', ['the first blob']),
  ...pointsOf('restore of everything', 'Redis', 'embedded', ['the first blob']),
  ...pointsOf('restore', 'read-write registry', 'apart', ['the first part of a blob', 'half of the blobs']),
  ...pointsOf('restore', 'read-write registry', 'embedded', ['the first tag']),
  ...pointsOf('restore', 'read-only registry', 'embedded', ['half of the tags']),
  ...pointsOf('drill', 'worker', 'embedded', ['its registry', 'its first blob']),

  ...pointsOf('prune', 'worker', 'embedded', ['its lock', 'the records that are gone', 'half of the blobs', 'a moment (1)']),
  ...pointsOf('prune', 'worker', 'apart', ['it was accepted', 'a record that is gone, its checksum not', 'the first blob', 'the last blob']),
  ...pointsOf('prune', 'Redis', 'embedded', ['half of the blobs']),
  ...pointsOf('prune', 'Redis', 'apart', ['its lock']),
  ...pointsOf('prune', 'read-write registry', 'embedded', ['the first blob']),

  ...pointsOf('garbage collection', 'worker', 'embedded', ['the first link', 'all blobs', 'its record', 'what is condemned, in part']),
  ...pointsOf('garbage collection', 'worker', 'apart', ['it was accepted', 'the first link of a layer', 'the first blob', 'what is condemned']),
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
  const [embedded, apart] = (['embedded', 'apart'] as const).map((form) => all.filter((point) => point.form === form)) as [Point[], Point[]];
  const share = (list: Point[]) => list.map((point, index) => ({ point, at: (index + 0.5) / list.length }));
  return [...share(embedded), ...share(apart)].sort((a, b) => a.at - b.at).map(({ point }) => point);
}

describe('no image and no backup is lost when', () => {
  beforeAll(async () => {
    sites = new Sites();
    await sites.start(['embedded', 'embedded', 'apart']);
  });
  afterAll(() => sites?.[Symbol.asyncDispose]());

  it.concurrent.each(points.map((point, index) => ({ ...point, index })))('a $job meets the death of the $victim at: $place ($form)', async (point) => {
    await sites.with(point.form, async (site) => {
      const { job, before } = await hit(site, point);
      await expectServed(site, before, { bytes: point.job === 'garbage collection' || point.index % 4 === 0 });
      await kinds[point.job].check(site, job);
      await expectWhole(site);
      if (point.index % 10 > 0) return;
      // A backup is good when it restores.
      const [backup] = await backupsOf(site);
      await lose(site, 'all');
      await success(site.client('backup'), createRestore({ client: site.client('backup'), body: { backupId: backup?.id ?? '' }, throwOnError: true }));
      const { references } = await recordOf(site, backup?.id ?? '');
      await expectServed(site, Object.fromEntries(references.map(({ repository, tag, digest }) => [`${repository}:${tag}`, digest])), { bytes: true });
      if (references.length < nameCount) await push(site.client('image'), await register(site.client('image'), join(bundles.path, 'extra.tar')));
    });
  });
});
