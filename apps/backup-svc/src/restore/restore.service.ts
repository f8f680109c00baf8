import { BlockList, isIP } from 'node:net';
import { type BackupSource, openBackup } from '@airdock/backup-store/backup-source';
import type { BackupStore } from '@airdock/backup-store/backup-store';
import { isTrusted } from '@airdock/backup-store/record-signature';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import { digestOf } from '@airdock/core/oci/digest';
import { formatName, parseName } from '@airdock/core/oci/reference';
import { freeBytesOf } from '@airdock/disk/files/durable-file';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { withRetry } from '@airdock/oci/registry-client/retry';
import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { pinUrl } from '@airdock/outbound/pinned-url';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { isEnded, type Job, type JobState } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { SecretBox } from '@airdock/platform/secrets';
import type { ServiceState } from '@airdock/platform/state/state.schema';
import { copyImages, failureOf, type ImageToCopy, type TargetName } from '@airdock/registry/copy/copy-image';
import { planCopy } from '@airdock/registry/copy/plan-copy';
import type { RegistryStorage } from '@airdock/registry/folder/registry-storage';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BackupService, filterByRepository, settingsServices } from '../backup/backup.service.js';
import { lockFor, withoutLock } from '../backup-target/backup-target.service.js';
import { DrillRegistry } from './drill-registry.js';
import { RestoreEntity } from './restore.entity.js';
import type { CreateRestore, Restore, RestoreReport } from './restore.schema.js';
import { isWithin, maxStateBytes, parseState, type StatePlan, StateRestore } from './state-restore.js';

export const restoreJobType = 'backup.restore';

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8);
loopback.addAddress('::1', 'ipv6');

/** Where a restore goes. */
interface Destination extends AsyncDisposable {
  registry: RegistryClient;
  /** Its folder, when blobs may be placed there. */
  storage: RegistryStorage | undefined;
  /** Its folder, when what is damaged there may be set aside. */
  repairs: RegistryStorage | undefined;
  /** Whose disk the blobs need. */
  dir: string | null;
}

/** Brings the content of a backup back: what is there is skipped, every blob is checked on its way, tags come last. */
@Injectable()
export class RestoreService {
  private readonly drills: DrillRegistry;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(RestoreEntity, 'backup') private readonly restores: Repository<RestoreEntity>,
    private readonly backups: BackupService,
    private readonly jobs: JobsService,
    private readonly secrets: SecretBox,
    private readonly clients: ServiceClients,
    private readonly targets: OutboundTargets,
  ) {
    this.drills = new DrillRegistry(config);
  }

  /**
   * Throws `resource_not_found`, `backup_incomplete`, `backup_corrupt`, `registry_off`, `registry_target_forbidden`.
   */
  async create(request: JobRequest, { backupId, registry, ...wanted }: CreateRestore): Promise<Job> {
    const { target } = await this.backups.locate(backupId, wanted);
    if (registry) await this.assertAllowed(registry);
    else if (!wanted.drill) await this.backups.registry(wanted.dryRun ? 'look' : 'write');
    const id = newId();
    const { password, ...where } = registry ?? {};
    const row = columns<RestoreEntity>({
      ...{ id, backupId, target, report: null, accepted: null, jobId: request.id, createdAt: now() },
      request: { ...wanted, ...(registry && { registry: { ...where, url: registry.url } }) },
      sealedPassword: password === undefined ? null : this.secrets.seal(password, id),
    });
    return this.jobs.submit({ ...request, type: restoreJobType, resource: `/v1/restores/${id}` }, [
      this.restores.createQueryBuilder().insert().values(row),
    ]);
  }

  /**
   * A password does not go over a network in plain, unless somebody has thought of that very registry. Throws
   * `registry_target_forbidden`.
   */
  private async assertAllowed({ url, username }: { url: string; username?: string | undefined }): Promise<void> {
    await this.targets.check(url);
    if (username === undefined || this.targets.parse(url).isSecure || this.targets.isListed(url)) return;
    if (
      (await this.targets.addressesOf(url)).every((address) =>
        loopback.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4'),
      )
    )
      return;
    throw new AppError('registry_target_forbidden', {
      detail: `${new URL(url).origin} would get the password in plain: use https, or list its name in airdock.registry.allowedHosts`,
    });
  }

  list(query: PageQuery): Promise<Page<Restore>> {
    return findPageWithState(this.restores, this.jobs, query, toResource);
  }

  get(id: string): Promise<Restore> {
    return getWithState(this.restores, this.jobs, id, toResource);
  }

  /**
   * Throws `space_insufficient` and `secrets_key_mismatch` before anything is changed, and `backup_incomplete` at the
   * end, when not everything came back.
   */
  @RunsJob(restoreJobType, { concurrency: 1 })
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const { progress } = context;
    const row = await getRow(this.restores, context.resourceId);
    const { mode, dryRun, drill, repositories, allowUnsigned } = row.request;
    await using store = await this.backups.openStore(row.target);
    await using lock = await store.lock({ ...lockFor(context), isReader: true });
    const { signal } = lock;
    const filter = filterByRepository(repositories);
    await using source = await openBackup(store, row.backupId, { filter, signal, allowUnsigned });
    const settings = row.request.settings ?? (!repositories && !row.request.registry && !drill);
    const found = settings ? await this.readStates(store, source) : { states: [] };
    const states = new StateRestore(this.clients, found.states, {
      existing: mode === 'exact' ? 'replace' : 'keep',
      isTrusted: isTrusted(source.signature),
      contentDigest: digestOf(Buffer.from(JSON.stringify(source.record.settings))),
      signal,
    });
    await using destination = await this.destinationOf(row, { signal, progress });
    const { registry, storage, repairs } = destination;
    const images = source.images.map((image) => ({ image, names: image.names.map(parseName) }));
    progress({ phase: 'comparing' });
    const plan = await planCopy({ source, images, registry, storage, repairs, signal });
    const report: RestoreReport = {
      ...(await this.compare(images, plan, source, destination, filter, signal)),
      missingBytes: plan.missingBytes,
    };
    // Every row is looked at before anything is written.
    const statePlan = await states.plan();
    Object.assign(report, statePlan.report);
    await this.restores.update({ id: row.id }, columns<RestoreEntity>({ report }));
    // Also of a dry run: what it would change is in the report, and that it cannot is in the error.
    if (found.mismatch) throw found.mismatch;
    if (dryRun) return { ...summaryOf(source, report), ...withoutLock(lock) };
    const isBegun = isBegunWith(row, statePlan);
    if (!isBegun) assertConfirmed(row, report, statePlan);
    this.assertRoom(report, destination.dir);
    if (!isBegun) await this.restores.update({ id: row.id }, columns<RestoreEntity>({ accepted: statePlan.accepted }));
    const wanted = withoutNames(images, row.request.onConflict === 'keep' ? report.conflicts : []);
    const surplus = mode === 'exact' ? report.extra.map(parseName) : [];
    const { failure, verified } = await copyBack(source, destination, wanted, surplus, { signal, progress });
    report.verified = verified;
    report.settings = settings ? await states.write() : null;
    await this.restores.update({ id: row.id }, columns<RestoreEntity>({ report, accepted: null }));
    if (failure) throw failure;
    assertWhole(source);
    return { ...summaryOf(source, report), ...withoutLock(lock) };
  }

  /** Throws `space_insufficient` where what is missing does not fit beside what has to stay free. */
  private assertRoom({ freeBytes, missingBytes }: RestoreReport, dir: string | null): void {
    const reservedBytes = dir ? this.config.registry.minFreeBytes : 0;
    if (freeBytes === null || missingBytes + reservedBytes <= freeBytes) return;
    throw new AppError('space_insufficient', {
      detail: `the restore needs ${missingBytes} bytes, and ${Math.max(0, freeBytes - reservedBytes)} may be used in ${dir ?? ''}`,
      neededBytes: missingBytes,
      freeBytes,
    });
  }

  /** What the registry has in place of what the backup says, and what nobody restores. */
  private async compare(
    images: readonly ImageToCopy[],
    plan: Awaited<ReturnType<typeof planCopy>>,
    source: BackupSource,
    { registry, dir }: Destination,
    filter: (name: { repository: string; tag: string }) => boolean,
    signal: AbortSignal,
  ): Promise<Omit<RestoreReport, 'missingBytes'>> {
    const missing: string[] = [];
    const conflicts: string[] = [];
    const wanted = new Set(source.broken.map(({ name }) => name));
    let present = 0;
    for (const [index, { image, names }] of images.entries()) {
      const isThere = plan.images[index]?.state === 'present';
      for (const local of names) {
        const name = nameOf({ image, names }, local);
        wanted.add(name);
        const reference = local.tag ?? image.root?.digest ?? '';
        const found = isThere
          ? image.root
          : await withRetry(() => registry.headManifest(local.repository, reference, { signal }), signal);
        if (!found) missing.push(name);
        else if (found.digest !== image.root?.digest) conflicts.push(name);
        else present += 1;
      }
    }
    // What a backup of some repositories does not have says nothing of the others.
    const isInBackup = filterByRepository(source.record.repositories);
    const extra: string[] = [];
    for (const repository of await withRetry(() => registry.listRepositories({ signal }), signal))
      for (const tag of await withRetry(() => registry.listTags(repository, { signal }), signal))
        if (filter({ repository, tag }) && isInBackup({ repository, tag }) && !wanted.has(`${repository}:${tag}`))
          extra.push(`${repository}:${tag}`);
    const freeBytes = dir ? await freeBytesOf(dir) : null;
    const open = { verified: null, settings: null, changes: null, planDigest: null };
    return {
      present,
      missing,
      conflicts,
      extra,
      freeBytes,
      broken: source.broken,
      signature: source.signature,
      ...open,
    };
  }

  private async destinationOf(
    { id, request: { registry, drill, dryRun }, sealedPassword }: RestoreEntity,
    context: Pick<JobContext, 'signal' | 'progress'>,
  ): Promise<Destination> {
    if (drill) return this.drillDestination(id, context.signal);
    if (registry) {
      const auth =
        registry.username === undefined
          ? undefined
          : { username: registry.username, password: sealedPassword ? this.secrets.open(sealedPassword, id) : '' };
      return destination(new RegistryClient(await pinUrl(this.targets, registry.url), { auth }), {}, null);
    }
    const { address, storage, repairs, storageDir } = await this.backups.registryForJob(
      context,
      dryRun ? 'look' : 'write',
    );
    return destination(new RegistryClient(address), { storage, repairs }, storageDir);
  }

  /** A registry of its own for a drill, over HTTP: it then checks every digest itself too. */
  private async drillDestination(id: string, signal: AbortSignal): Promise<Destination> {
    const { address, storageDir } = await this.drills.start(id, signal);
    return destination(new RegistryClient(address), {}, storageDir, () => this.drills.remove(id));
  }

  /** Ends and removes the registries of drills that were killed and then cancelled. */
  async sweepDrills(): Promise<void> {
    for (const id of await this.drills.list()) {
      const row = await this.restores.findOneBy({ id });
      const job = row && (await this.jobs.find(row.jobId));
      if (!job || isEnded(job.state)) await this.drills.remove(id);
    }
  }

  /** `mismatch` when there are secrets that this DU cannot open. */
  private async readStates(
    store: BackupStore,
    source: BackupSource,
  ): Promise<{ states: ServiceState[]; mismatch?: AppError }> {
    const index = await store.index();
    const states: ServiceState[] = [];
    const sealedElsewhere: string[] = [];
    for (const service of settingsServices) {
      const blob = source.record.settings.find((settings) => settings.service === service);
      if (!blob) continue;
      const state = parseState(service, await store.readBlob(index, blob, maxStateBytes));
      const hasSecrets = state.tables.some(({ rows }) =>
        rows.some((row) => Object.keys(row).some((name) => name.startsWith('sealed'))),
      );
      if (hasSecrets && state.keyFingerprint !== this.secrets.fingerprint) sealedElsewhere.push(`${service}-svc`);
      states.push(state);
    }
    if (sealedElsewhere.length === 0) return { states };
    return {
      states,
      mismatch: new AppError('secrets_key_mismatch', {
        detail: `the settings of ${sealedElsewhere.join(' and ')} in this backup`,
      }),
    };
  }
}

const destination = (
  registry: RegistryClient,
  { storage, repairs }: Partial<Pick<Destination, 'storage' | 'repairs'>>,
  dir: string | null,
  end?: () => Promise<void>,
): Destination => ({
  registry,
  storage,
  repairs,
  dir,
  [Symbol.asyncDispose]: async () => {
    await registry.close();
    await end?.();
  },
});

/** Copies the images, removes the surplus names once everything has come, and counts the names that came back. */
async function copyBack(
  source: BackupSource,
  { registry, storage, repairs }: Destination,
  images: ImageToCopy[],
  surplus: readonly TargetName[],
  { signal, progress }: Pick<JobContext, 'signal' | 'progress'>,
): Promise<{ failure: ReturnType<typeof failureOf>; verified: number }> {
  const copied = await copyImages({
    source,
    registry,
    storage,
    repairs,
    images,
    signal,
    onProgress: (done) => progress({ phase: 'restore', ...done }),
  });
  const failure = failureOf(copied);
  if (!failure && source.broken.length === 0)
    for (const { repository, tag } of surplus)
      if (tag !== undefined) await registry.deleteTag(repository, tag, { signal });
  progress({ phase: 'verifying' });
  return { failure, verified: await verify(registry, images, signal) };
}

/** How many names lead to the digest that the backup says. */
async function verify(registry: RegistryClient, images: readonly ImageToCopy[], signal: AbortSignal): Promise<number> {
  let verified = 0;
  for (const { image, names } of images) {
    for (const { repository, tag } of names) {
      const reference = tag ?? image.root?.digest ?? '';
      const found = await withRetry(() => registry.headManifest(repository, reference, { signal }), signal);
      if (found && found.digest === image.root?.digest) verified += 1;
    }
  }
  return verified;
}

const summaryOf = ({ images, record }: BackupSource, { present, missingBytes, verified, broken }: RestoreReport) => ({
  images: images.reduce((sum, { names }) => sum + names.length, 0),
  present,
  missingBytes,
  verified,
  broken: broken.length,
  backupId: record.id,
});

const nameOf = ({ image: { root } }: ImageToCopy, name: TargetName): string =>
  formatName({ ...name, digest: root?.digest });

const toResource = (
  { id, backupId, target, request, report, jobId, createdAt }: RestoreEntity,
  state: JobState,
): Restore => ({
  ...{ id, backupId, target, request, report, jobId, createdAt },
  state,
});

/** The images with the names that are left to them, if any. */
function withoutNames(images: readonly ImageToCopy[], taken: readonly string[]): ImageToCopy[] {
  const names = new Set(taken);
  return images
    .map((item) => ({ ...item, names: item.names.filter((local) => !names.has(nameOf(item, local))) }))
    .filter((item) => item.names.length > 0);
}

/** Throws `backup_incomplete` for images that the backup has and cannot give. */
function assertWhole({ broken: [first, ...others] }: BackupSource): void {
  if (first)
    throw new AppError('backup_incomplete', {
      detail: `${others.length + 1} images are damaged in the backup, first ${first.name}: ${first.reason}`,
    });
}

/** One that was ended between two tables finds its own rows there, and goes on with what it began. */
const isBegunWith = ({ accepted }: RestoreEntity, plan: StatePlan): boolean =>
  accepted !== null && isWithin(plan, accepted);

/** Throws `restore_unconfirmed` unless somebody has confirmed where hosts, credentials and webhooks will lead. */
function assertConfirmed(
  { id, request: { confirm } }: RestoreEntity,
  { planDigest }: RestoreReport,
  plan: StatePlan,
): void {
  if (planDigest === null || planDigest === confirm) return;
  throw new AppError('restore_unconfirmed', {
    detail: `${plan.guarded.length} changes${confirm ? ', other ones than were confirmed' : ''}: /v1/restores/${id}`,
    planDigest,
  });
}
