/** Upgrades that are killed, cancelled and stopped at any point, and taken up again until nothing is left to do. */
import { AppError, type ErrorCode } from '@airdock/core/errors';
import { newId } from '@airdock/platform/ids';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { DuUpgradeEntity } from './du-upgrade.entity.js';
import type { Action } from './du-upgrade.machine.js';
import { type DuUpgradePhase, duUpgradePhases, endedPhases } from './du-upgrade.schema.js';
import { DuUpgradeService } from './du-upgrade.service.js';

/** What becomes of one thing that an upgrade does: an action, or a row that is written. */
type Fate =
  | 'works'
  | 'killedBefore'
  | 'killedAfter'
  | 'tablesLost'
  | Extract<ErrorCode, 'dependency_unavailable' | 'space_insufficient' | 'du_upgrade_incomplete'>;
const fates: Fate[] = [
  'killedBefore',
  'killedAfter',
  'tablesLost',
  'dependency_unavailable',
  'space_insufficient',
  'du_upgrade_incomplete',
];

/** The world around an upgrade: the fence, the engine, the jobs that it began, and the row that a killed worker left. */
class World {
  isFenced: boolean;
  engine: 'old' | 'new';
  readonly backups = new Map<string, 'running' | 'ended'>();
  readonly restores = new Map<string, 'running' | 'ended'>();
  stored: DuUpgradeEntity;
  readonly seen: string[] = [];
  /** What must never be; thrown from an action it would only be a failure of that. */
  readonly sins: string[] = [];
  private controller = new AbortController();

  constructor(
    phase: DuUpgradePhase,
    goal: DuUpgradeEntity['goal'],
    private readonly fates: Fate[],
  ) {
    const index = (name: DuUpgradePhase) => duUpgradePhases.indexOf(name);
    const isWayBack = index(phase) > index('done');
    this.isFenced = phase !== 'rolledBack' && phase !== 'refused' && index(phase) > index('fence') && phase !== 'done';
    this.engine = phase === 'rollBackEngine' || (index(phase) > index('engine') && !isWayBack) ? 'new' : 'old';
    this.stored = {
      id: newId(),
      phase,
      goal,
      dryRun: false,
      error: null,
      restores: 0,
      report: null,
    } as DuUpgradeEntity;
    if (isWayBack || endedPhases.includes(phase))
      this.stored.error = { code: 'du_upgrade_incomplete', title: '', type: '', status: 500, nextStep: '' };
  }

  /** True when it went through; otherwise a later run has to. */
  async runOnce(): Promise<'ended' | 'failed' | 'interrupted'> {
    this.controller = new AbortController();
    const { signal } = this.controller;
    const context = { resourceId: this.stored.id, jobId: '', attempt: 1, signal, progress: () => undefined };
    try {
      await this.service().run({ ...context, saved: async () => undefined });
      return 'ended';
    } catch {
      return signal.aborted ? 'interrupted' : 'failed';
    }
  }

  private service(): DuUpgradeService {
    const rows = {
      table: { findOne: async () => structuredClone(this.stored) },
      save: (row: DuUpgradeEntity, change: Partial<DuUpgradeEntity>) =>
        this.meet('a row', () => {
          this.stored = structuredClone(Object.assign(row, change));
        }),
      forgetEnded: async () => undefined,
    };
    return new DuUpgradeService(
      {} as never,
      rows as never,
      this.actions() as never,
      {} as never,
      {} as never,
      {} as never,
    );
  }

  /** Does it, or dies before or after, or fails. */
  private async meet(what: string, effect: () => void): Promise<void> {
    // A row is written or not: it does not fail as what is done does.
    const next = this.fates.shift() ?? 'works';
    const fate = what === 'a row' && next.includes('_') ? 'works' : next;
    const die = () => {
      this.controller.abort(new Error(`killed at ${what}`));
      this.controller.signal.throwIfAborted();
    };
    if (fate === 'tablesLost') {
      // The row comes back from its file; the fence was in the tables.
      this.isFenced = false;
      die();
    }
    if (fate === 'killedBefore') die();
    if (fate.includes('_')) throw new AppError(fate as ErrorCode);
    effect();
    if (fate === 'killedAfter') die();
  }

  /** A job of backup-svc, which goes on when the worker that follows it has died. */
  private async follow(
    row: DuUpgradeEntity,
    what: string,
    jobs: Map<string, 'running' | 'ended'>,
    key: string,
  ): Promise<void> {
    await this.meet(`${what} begins`, () => {
      if ([...jobs].some(([other, state]) => other !== key && state === 'running')) this.sins.push(`a second ${what}`);
      if (!jobs.has(key)) jobs.set(key, 'running');
    });
    try {
      await this.meet(`${what} ends`, () => jobs.set(key, 'ended'));
    } catch (error) {
      // That it failed says that it has ended; that nobody answers says nothing.
      if (error instanceof AppError && error.family !== 'unavailable') {
        jobs.set(key, 'ended');
        this.stored = structuredClone(Object.assign(row, { restores: row.restores + 1 }));
      }
      throw error;
    }
  }

  private actions(): Record<Action, (row: DuUpgradeEntity) => Promise<void>> {
    const simple =
      (what: Action, effect: () => void = () => undefined) =>
      () =>
        this.meet(what, () => {
          this.seen.push(what);
          effect();
        });
    return {
      inspect: simple('inspect'),
      forgetBackup: simple('forgetBackup'),
      requireRegistry: simple('requireRegistry'),
      raiseFence: simple('raiseFence', () => {
        this.isFenced = true;
      }),
      lowerFence: simple('lowerFence', () => {
        this.isFenced = false;
      }),
      switchEngine: simple('switchEngine', () => {
        if (!this.isFenced) this.sins.push('the engine is switched without a fence');
        this.engine = 'new';
      }),
      switchEngineBack: simple('switchEngineBack', () => {
        this.engine = 'old';
      }),
      askServices: simple('askServices'),
      compare: simple('compare'),
      // As `DuUpgradeData` makes its keys.
      backUp: (row) => this.follow(row, 'backup', this.backups, row.phase),
      restore: (row) => this.follow(row, 'restore', this.restores, String(row.restores)),
    };
  }
}

const open = duUpgradePhases.filter((phase) => !endedPhases.includes(phase));
const worlds = fc.record({
  phase: fc.constantFrom(...open),
  goal: fc.constantFrom('done' as const, 'rolledBack' as const),
  fates: fc.array(fc.oneof({ weight: 2, arbitrary: fc.constant<Fate>('works') }, fc.constantFrom(...fates)), {
    maxLength: 60,
  }),
});

describe('an upgrade of the DU that dies and fails by chance', () => {
  it('ends, with the fence down and the engine that belongs to its end', async () => {
    await fc.assert(
      fc.asyncProperty(worlds, async ({ phase, goal, fates }) => {
        const world = new World(phase, goal, [...fates]);
        // Each run uses up a fate, so it is over when none is left.
        for (let run = 0; run <= fates.length; run++) if ((await world.runOnce()) === 'ended') break;
        const { phase: end } = world.stored;
        expect(endedPhases).toContain(end);
        expect({ end, isFenced: world.isFenced, engine: world.engine }).toEqual({
          ...{ end, isFenced: false, engine: end === 'done' ? 'new' : 'old' },
        });
        if (goal === 'rolledBack') expect(end).toBe('rolledBack');
        expect(world.sins).toEqual([]);
        expect(world.backups.size).toBeLessThanOrEqual(2);
        const doneBefore = world.seen.length;
        await world.runOnce();
        expect(world.seen.slice(doneBefore), 'nothing is done after the end').toEqual([]);
      }),
      { numRuns: 1_000 },
    );
  });

  it('makes no second backup or restore where it only dies', async () => {
    const deaths = fc.array(fc.constantFrom<Fate>('works', 'killedBefore', 'killedAfter'), { maxLength: 80 });
    await fc.assert(
      fc.asyncProperty(deaths, async (fates) => {
        const world = new World('preflight', 'done', [...fates]);
        for (let run = 0; run <= fates.length; run++) if ((await world.runOnce()) === 'ended') break;
        expect(world.stored.phase).toBe('done');
        expect(world.sins).toEqual([]);
        expect([...world.backups.keys()]).toEqual(['backup', 'finalBackup']);
        expect(world.restores.size).toBe(1);
      }),
      { numRuns: 500 },
    );
  });
});
