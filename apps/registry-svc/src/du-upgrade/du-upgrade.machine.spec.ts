import { AppError, type ErrorCode, toProblem } from '@airdock/core/errors';
import { describe, expect, it } from 'vitest';
import {
  actionsOf,
  failureOf,
  goOn,
  next,
  type Outcome,
  outcomeOf,
  takeUp,
  type UpgradeState,
} from './du-upgrade.machine.js';
import { type DuUpgradePhase, duUpgradePhases } from './du-upgrade.schema.js';

const error = toProblem(new AppError('registry_start_failed', { detail: 'exit 1' }));
const former = toProblem(new AppError('dependency_unavailable'));
const at = (phase: DuUpgradePhase, change: Partial<UpgradeState> = {}): UpgradeState => ({
  ...{ phase, goal: 'done', dryRun: false, error: null, restores: 3 },
  ...change,
});

const outcomes = ['done', 'unavailable', 'needsSomebody', 'failed', 'cancelled'] as const;
/** Where each outcome leads to; where it stops, the job ends with the error, and the next one begins there again. */
const table = `
  phase          | done         | unavailable | needsSomebody | failed         | cancelled
  preflight      | backup       | stop        | refused       | refused        | stop
  backup         | fence        | stop        | refused       | refused        | stop
  fence          | finalBackup  | stop        | stop          | rollBackEngine | stop
  finalBackup    | engine       | stop        | stop          | rollBackEngine | stop
  prepared       | engine       | stop        | stop          | rollBackEngine | stop
  engine         | migrate      | stop        | stop          | rollBackEngine | stop
  migrate        | restore      | stop        | stop          | rollBackEngine | stop
  restore        | compare      | stop        | stop          | rollBackEngine | stop
  compare        | open         | stop        | stop          | rollBackEngine | stop
  open           | done         | stop        | stop          | rollBackEngine | stop
  rollBackEngine | rollBackData | stop        | stop          | stop           | stop
  rollBackData   | rollBackOpen | stop        | stop          | stop           | stop
  rollBackOpen   | rolledBack   | stop        | stop          | stop           | stop`
  .trim()
  .split('\n')
  .slice(1)
  .map((line) => line.split('|').map((cell) => cell.trim()) as [DuUpgradePhase, ...(DuUpgradePhase | 'stop')[]]);
const outcome = (kind: Outcome['kind']): Outcome =>
  kind === 'done' || kind === 'cancelled' ? { kind } : { kind, error };
const decide = (state: UpgradeState, kind: Outcome['kind']) => {
  const { change, then } = next(state, outcome(kind));
  return { after: { ...state, ...change }, then };
};

describe('an upgrade of the DU', () => {
  it('has a row in the table for each phase that has not ended', () => {
    expect([...table.map(([phase]) => phase), 'done', 'rolledBack', 'refused'].toSorted()).toEqual(
      [...duUpgradePhases].toSorted(),
    );
  });

  for (const [phase, ...cells] of table)
    for (const [index, kind] of outcomes.entries()) {
      const cell = cells[index] ?? 'stop';
      it(`${phase}, ${kind}: ${cell}`, () => {
        const { after, then } = decide(at(phase), kind);
        expect(after.phase).toBe(cell === 'stop' ? phase : cell);
        expect(then).toBe(
          cell === 'stop' ? 'stop' : ['done', 'rolledBack', 'refused'].includes(cell) ? 'end' : 'proceed',
        );
        // Killed and run again: where the row is, the same is begun.
        expect(takeUp(after)).toEqual({ change: {}, then: then === 'end' ? 'end' : 'proceed' });
      });
    }

  it('stays where it is prepared only if that was wanted', () => {
    expect(decide(at('finalBackup', { goal: 'prepared' }), 'done')).toMatchObject({
      after: { phase: 'prepared' },
      then: 'end',
    });
    expect(takeUp(at('prepared', { goal: 'prepared' }))).toEqual({ change: {}, then: 'end' });
    expect(takeUp(at('prepared'))).toEqual({ change: {}, then: 'proceed' });
  });

  it.each(table.map(([phase]) => phase))('that is to be rolled back at %s leaves it by the way back', (phase) => {
    const { change, then } = takeUp(at(phase, { goal: 'rolledBack' }));
    const isEarly = phase === 'preflight' || phase === 'backup';
    if (phase.startsWith('rollBack')) expect({ change, then }).toEqual({ change: {}, then: 'proceed' });
    else
      expect({ phase: change.phase, then }).toEqual(
        isEarly ? { phase: 'rolledBack', then: 'end' } : { phase: 'rollBackEngine', then: 'proceed' },
      );
  });

  it('that has ended is never begun again, whatever was wanted', () => {
    for (const phase of ['done', 'rolledBack', 'refused'] as const)
      for (const goal of ['prepared', 'done', 'rolledBack'] as const) {
        expect(takeUp(at(phase, { goal }))).toEqual({ change: {}, then: 'end' });
        expect(actionsOf(at(phase, { goal }))).toEqual([]);
      }
  });

  it('that is only tried looks, and does nothing else', () => {
    const tried = at('preflight', { dryRun: true });
    expect(actionsOf(tried)).toEqual(['inspect']);
    expect(decide(tried, 'done')).toEqual({ after: tried, then: 'end' });
    expect(decide(tried, 'failed')).toMatchObject({ after: { phase: 'refused' }, then: 'end' });
  });

  it('keeps the error that it is rolled back for, and forgets one that was got over', () => {
    expect(decide(at('engine', { error: former }), 'done').after.error).toBeNull();
    expect(decide(at('engine', { error: former }), 'failed').after.error).toBe(error);
    expect(decide(at('rollBackEngine', { error: former }), 'done').after.error).toBe(former);
    expect(decide(at('rollBackOpen', { error: former }), 'done').after.error).toBe(former);
    expect(decide(at('engine', { error: former }), 'unavailable').after.error).toBe(error);
    expect(decide(at('rollBackData', { error: former }), 'unavailable').after.error).toBe(former);
    expect(decide(at('rollBackData', { error: former }), 'failed').after.error).toBe(error);
  });

  it('counts an attempt at its data when that is over, which only a success says', () => {
    const counting = table.filter(([phase]) => decide(at(phase), 'done').after.restores === 4).map(([phase]) => phase);
    expect(counting).toEqual(['restore', 'compare', 'rollBackData']);
    for (const [phase] of table)
      for (const kind of outcomes.slice(1)) expect(decide(at(phase), kind).after.restores, `${phase} ${kind}`).toBe(3);
  });

  it('has failed when it was refused, or rolled back by itself', () => {
    expect(failureOf(at('refused', { error }))).toBe(error);
    expect(failureOf(at('rolledBack', { error }))).toBe(error);
    expect(failureOf(at('rolledBack', { error, goal: 'rolledBack' }))).toBeUndefined();
    expect(failureOf(at('done'))).toBeUndefined();
    expect(failureOf(at('prepared', { goal: 'prepared' }))).toBeUndefined();
  });
});

describe('to go on', () => {
  const refusal = (detail: string) => expect.objectContaining({ code: 'du_upgrade_state', details: { detail } });

  it('is refused where nothing is left to do, or the way back was begun', () => {
    for (const phase of ['done', 'rolledBack', 'refused'] as const)
      for (const goal of ['done', 'rolledBack'] as const)
        expect(() => goOn(at(phase), goal)).toThrow(refusal(`it has ended: ${phase}`));
    for (const phase of ['preflight', 'rollBackEngine', 'rollBackData', 'rollBackOpen'] as const)
      expect(() => goOn(at(phase), 'done')).toThrow(refusal(`it is at ${phase}`));
    expect(() => goOn(at('preflight', { dryRun: true }), 'rolledBack')).toThrow(refusal('it has ended: preflight'));
  });

  it('with another engine puts that in, also when one was already', () => {
    expect(goOn(at('prepared'), 'done', { hasNewEngine: true })).toEqual({ goal: 'done' });
    expect(goOn(at('open'), 'done', { hasNewEngine: true })).toEqual({ goal: 'done', phase: 'engine' });
    expect(goOn(at('compare'), 'done')).toEqual({ goal: 'done' });
  });

  it('lets pushes in again where the data did not come back, if somebody asks once more', () => {
    expect(goOn(at('rollBackData', { error }), 'rolledBack')).toEqual({ goal: 'rolledBack', phase: 'rollBackOpen' });
    expect(goOn(at('rollBackData'), 'rolledBack')).toEqual({ goal: 'rolledBack' });
    expect(goOn(at('engine', { error }), 'rolledBack')).toEqual({ goal: 'rolledBack' });
  });
});

it.each<[ErrorCode, Outcome['kind']]>([
  ['dependency_unavailable', 'unavailable'],
  ['registry_unavailable', 'unavailable'],
  ['registry_start_failed', 'failed'],
  ['registry_off', 'needsSomebody'],
  ['restore_unconfirmed', 'needsSomebody'],
  ['secrets_key_mismatch', 'needsSomebody'],
  ['space_insufficient', 'needsSomebody'],
  ['backup_incomplete', 'needsSomebody'],
  ['du_upgrade_incomplete', 'failed'],
  ['du_engine_digest_wrong', 'failed'],
  ['job_cancelled', 'failed'],
])('%s is %s', (code, kind) => {
  expect(outcomeOf(new AppError(code))).toMatchObject({ kind, error: { code } });
});

it('an error that nobody knows ends an upgrade as one that is known does', () => {
  expect(outcomeOf(new TypeError('of undefined'))).toMatchObject({ kind: 'failed', error: { code: 'internal_error' } });
});
