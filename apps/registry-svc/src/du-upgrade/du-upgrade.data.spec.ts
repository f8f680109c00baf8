import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError, type ErrorCode, toProblem } from '@airdock/core/errors';
import { newId } from '@airdock/platform/ids';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DuUpgradeData } from './du-upgrade.data.js';
import type { DuUpgradeEntity } from './du-upgrade.entity.js';

interface FakeJob {
  id: string;
  type: string;
  resource: string;
  state: string;
  finishedAt: string | null;
  error: object | null;
  body: { dryRun?: boolean; confirm?: string };
  report?: object;
}

/** Backups and restores as backup-svc answers for them: one job for each Idempotency-Key. */
class BackupService {
  readonly jobs = new Map<string, FakeJob>();
  report: Record<string, unknown> = {};
  /** How the next jobs end; `hangs` until somebody says otherwise. */
  ends: (ErrorCode | 'hangs' | undefined)[] = [];
  retried = 0;
  readonly server: Server = createServer((request, response) => {
    void this.answer(request).then((body) => {
      response.writeHead(body ? 200 : 404, { 'content-type': 'application/json' }).end(JSON.stringify(body ?? {}));
    });
  });

  private async answer(request: IncomingMessage): Promise<object | undefined> {
    const [, , kind = '', id = '', action] = (request.url ?? '').split('?')[0]?.split('/') ?? [];
    const job = [...this.jobs.values()].find((each) => each.id === id);
    if (request.method === 'POST' && action === 'retry' && job) {
      this.retried += 1;
      return this.end(job);
    }
    if (request.method === 'POST')
      return this.begin(kind, String(request.headers['idempotency-key']), await text(request));
    if (kind === 'restores') return [...this.jobs.values()].find(({ resource }) => resource.endsWith(id));
    if (kind === 'backups') return { id, images: 3, skipped: [{ name: 'half:1' }] };
    return job;
  }

  private begin(kind: string, key: string, body: string): object {
    const known = this.jobs.get(key);
    if (known) return known;
    const id = newId();
    const job = { id, type: `backup.${kind}`, resource: `/v1/${kind}/${newId()}`, body: JSON.parse(body) as object };
    this.jobs.set(key, { ...job, state: 'running', finishedAt: null, error: null });
    return this.end(this.jobs.get(key) as FakeJob);
  }

  private end(job: FakeJob): object {
    const end = this.ends.shift();
    if (end === 'hangs') return job;
    return Object.assign(job, {
      report: this.report,
      state: end ? 'failed' : 'succeeded',
      finishedAt: new Date().toISOString(),
      error: end ? toProblem(new AppError(end)) : null,
    });
  }

  finishAll(): void {
    for (const job of this.jobs.values()) if (!job.finishedAt) this.end(job);
  }

  /** Restores that write, in the order in which they were begun. */
  get writing(): FakeJob[] {
    return [...this.jobs.values()].filter(({ type, body }) => type === 'backup.restores' && !body.dryRun);
  }
}

let service: BackupService;
let upgrade: DuUpgradeEntity;
let data: DuUpgradeData;
const { signal } = new AbortController();
beforeEach(async () => {
  service = new BackupService();
  service.report = {
    missing: ['a:1'],
    conflicts: [],
    missingBytes: 5,
    broken: [],
    present: 2,
    signature: { state: 'own' },
  };
  await new Promise<void>((resolve) => service.server.listen(0, '127.0.0.1', resolve));
  const endpoint = { url: `http://127.0.0.1:${(service.server.address() as AddressInfo).port}` };
  const clients = new ServiceClients(
    { registry: endpoint, image: endpoint, host: endpoint, cluster: endpoint, backup: endpoint },
    () => 'token',
  );
  upgrade = {
    id: newId(),
    phase: 'restore',
    backupId: newId(),
    restores: 0,
    report: null,
    hasLostTables: false,
  } as DuUpgradeEntity;
  Object.assign(upgrade, { target: 'default', allowUnsigned: false, confirm: null });
  const save = async (row: DuUpgradeEntity, change: Partial<DuUpgradeEntity>) => void Object.assign(row, change);
  const load = async () => ({ mode: 'local', engineVersion: '2.8' });
  data = new DuUpgradeData({ save } as never, { load } as never, clients);
});
afterEach(() => new Promise((resolve) => service.server.close(resolve).closeAllConnections()));

/** Begins to bring back what is gone, and dies while the job does it. */
async function dieInRestore(): Promise<void> {
  service.ends = [undefined, 'hangs'];
  const worker = new AbortController();
  const died = data.restore(upgrade, worker.signal);
  await expect.poll(() => service.writing.length).toBe(1);
  worker.abort();
  await expect(died).rejects.toMatchObject({ name: 'AbortError' });
}

describe('bringing data back', () => {
  it('begins no second restore where a worker dies in the first, and says that something came back', async () => {
    Object.assign(service.report, { planDigest: 'sha256:before' });
    await dieInRestore();
    // Half of it is there by now, so that another look would see another plan.
    service.finishAll();
    service.report = { ...service.report, missing: [], missingBytes: 0 };
    await data.restore(upgrade, signal);
    expect(service.writing).toHaveLength(1);
    expect(service.jobs.size).toBe(2);
    expect(upgrade.report).toMatchObject({ restored: true });
  });

  it('tries anew what has failed, and looks anew before', async () => {
    service.ends = [undefined, 'registry_unavailable'];
    await expect(data.restore(upgrade, signal)).rejects.toMatchObject({ code: 'registry_unavailable' });
    await data.restore(upgrade, signal);
    expect(service.writing.map(({ state }) => state)).toEqual(['failed', 'succeeded']);
    expect(service.jobs.size).toBe(4);
    expect(upgrade.report).toMatchObject({ restored: true });
  });

  it('confirms the plan of what this DU has signed, and otherwise what somebody has confirmed', async () => {
    service.report.planDigest = 'sha256:own';
    await data.restore(upgrade, signal);
    Object.assign(service.report, { signature: { state: 'unknown' } });
    Object.assign(upgrade, { restores: 1, confirm: 'sha256:somebody' });
    await data.restore(upgrade, signal);
    expect(service.writing.map(({ body }) => body.confirm)).toEqual(['sha256:own', 'sha256:somebody']);
  });

  it('writes nothing without a backup', async () => {
    upgrade.backupId = null;
    await data.restore(upgrade, signal);
    await data.compare(upgrade, signal);
    expect(service.jobs.size).toBe(0);
  });
});

describe('comparing', () => {
  it('looks once in a run of a phase, and anew when what it found was wrong', async () => {
    upgrade.phase = 'compare';
    await expect(data.compare(upgrade, signal)).rejects.toMatchObject({
      code: 'du_upgrade_incomplete',
      details: { detail: '1 of 3 names are missing, 0 lead to something else' },
    });
    service.report = { ...service.report, missing: [], missingBytes: 0, present: 3 };
    await data.compare(upgrade, signal);
    await data.compare(upgrade, signal);
    expect(service.jobs.size).toBe(2);
    expect(upgrade.report).toMatchObject({ images: 3, present: 3, missing: [], engineVersion: '2.8' });
  });

  it('lets pass what was pushed since, and what was not, only where the tables were lost', async () => {
    service.report = { ...service.report, missing: [], conflicts: ['a:1'], missingBytes: 0 };
    await expect(data.compare(upgrade, signal)).rejects.toMatchObject({ code: 'du_upgrade_incomplete' });
    upgrade.hasLostTables = true;
    await data.compare(upgrade, signal);
    expect(upgrade.report).toMatchObject({ changed: ['a:1'] });
  });
});

describe('backing up', () => {
  it('makes one backup for a phase, and retries the one that has failed', async () => {
    upgrade.phase = 'backup';
    service.ends = ['backup_target_unavailable' as ErrorCode, 'space_insufficient'];
    await expect(data.backUp(upgrade, signal)).rejects.toMatchObject({ code: 'space_insufficient' });
    expect(await data.backUp(upgrade, signal)).toEqual(['half:1']);
    expect([service.jobs.size, service.retried]).toEqual([1, 2]);
    upgrade.phase = 'finalBackup';
    await data.backUp(upgrade, signal);
    expect(service.jobs.size).toBe(2);
  });
});
