import { AppError, type Problem, toProblem } from '@airdock/core/errors';
import { type DuUpgradeGoal, type DuUpgradePhase, endedPhases } from './du-upgrade.schema.js';

/** What of an upgrade's row decides what happens next. */
export interface UpgradeState {
  phase: DuUpgradePhase;
  goal: DuUpgradeGoal;
  dryRun: boolean;
  error: Problem | null;
  /**
   * Attempts at bringing data back that are over. It is in the key of a restore, so that no attempt begins two; of a
   * failure it is not known here whether its restore has ended.
   */
  restores: number;
}

/** What a phase does to the world. Each may be begun again after a kill. */
export type Action =
  | 'inspect'
  | 'backUp'
  | 'forgetBackup'
  | 'requireRegistry'
  | 'raiseFence'
  | 'lowerFence'
  | 'switchEngine'
  | 'switchEngineBack'
  | 'askServices'
  | 'restore'
  | 'compare';

/** How the actions of a phase came out. */
export type Outcome =
  | { kind: 'done' | 'cancelled' }
  /** `unavailable` is cured by waiting; `needsSomebody` by what an operator brings; `failed` by neither. */
  | { kind: 'unavailable' | 'needsSomebody' | 'failed'; error: Problem };

export interface Decision {
  change: Partial<UpgradeState>;
  /** `act`: do what the phase says; `stop`: end the job with the outcome; `end`: the upgrade is where it should be. */
  then: 'proceed' | 'stop' | 'end';
}

/**
 * The way of an upgrade. The large backup is made while pushes go on; the one behind the fence has little to add, and
 * only that one counts: names that moved before the fence must not be turned back. A DU that has lost its tables has
 * lost its fence, so `engine` raises it again.
 */
const phases: Partial<Record<DuUpgradePhase, { actions: readonly Action[]; next: DuUpgradePhase }>> = {
  preflight: { actions: ['inspect'], next: 'backup' },
  backup: { actions: ['backUp'], next: 'fence' },
  fence: { actions: ['forgetBackup', 'raiseFence'], next: 'finalBackup' },
  finalBackup: { actions: ['backUp'], next: 'prepared' },
  prepared: { actions: [], next: 'engine' },
  engine: { actions: ['requireRegistry', 'raiseFence', 'switchEngine'], next: 'migrate' },
  migrate: { actions: ['askServices'], next: 'restore' },
  restore: { actions: ['restore'], next: 'compare' },
  compare: { actions: ['compare'], next: 'open' },
  open: { actions: ['lowerFence'], next: 'done' },
  rollBackEngine: { actions: ['switchEngineBack'], next: 'rollBackData' },
  rollBackData: { actions: ['restore', 'compare'], next: 'rollBackOpen' },
  rollBackOpen: { actions: ['lowerFence'], next: 'rolledBack' },
};

/** These change nothing that would have to be undone. */
const harmless: readonly DuUpgradePhase[] = ['preflight', 'backup'];
const rollingBack: readonly DuUpgradePhase[] = ['rollBackEngine', 'rollBackData', 'rollBackOpen'];
/** These look at data or bring it back: when one is over, the next has to look anew. */
const dataPhases: readonly DuUpgradePhase[] = ['restore', 'compare', 'rollBackData'];

const hasEnded = ({ phase }: UpgradeState) => endedPhases.includes(phase);
const isRollingBack = ({ phase }: UpgradeState) => rollingBack.includes(phase);

/** What the phase of an upgrade does, in this order. */
export const actionsOf = ({ phase }: UpgradeState): readonly Action[] => phases[phase]?.actions ?? [];

/** A job takes an upgrade up: for the first time, after a kill, or since somebody wants it finished or rolled back. */
export function takeUp(state: UpgradeState): Decision {
  if (hasEnded(state) || state.phase === state.goal) return { change: {}, then: 'end' };
  if (state.goal === 'rolledBack' && !isRollingBack(state))
    return move(state, harmless.includes(state.phase) ? 'rolledBack' : 'rollBackEngine');
  return { change: {}, then: 'proceed' };
}

/** What follows when the actions of the phase came out so. */
export function next(state: UpgradeState, outcome: Outcome): Decision {
  switch (outcome.kind) {
    case 'cancelled':
      return { change: {}, then: 'stop' };
    case 'unavailable':
      // Of one that is rolled back the row says why, and not what is in the way of it now.
      return { change: isRollingBack(state) ? {} : { error: outcome.error }, then: 'stop' };
    case 'done':
      return state.dryRun ? { change: {}, then: 'end' } : move(attempted(state), following(state));
    case 'needsSomebody':
    case 'failed':
      return afterFailure(state, outcome);
  }
}

/** A phase that failed for good is left by the way back; rolling back itself stops where it is: somebody has to look. */
function afterFailure(
  state: UpgradeState,
  { kind, error }: Exclude<Outcome, { kind: 'done' | 'cancelled' }>,
): Decision {
  const isHarmless = harmless.includes(state.phase);
  if (isRollingBack(state) || (kind === 'needsSomebody' && !isHarmless)) return { change: { error }, then: 'stop' };
  return move({ ...state, error }, isHarmless ? 'refused' : 'rollBackEngine');
}

/** Only one that is to be prepared stays where it is prepared. */
function following({ phase, goal }: UpgradeState): DuUpgradePhase {
  const { next } = phases[phase] ?? { next: phase };
  return next === 'prepared' && goal !== 'prepared' ? 'engine' : next;
}

function move(state: UpgradeState, phase: DuUpgradePhase): Decision {
  const moved = { ...state, phase };
  // An error that was got over is none any more.
  const isKept = isRollingBack(moved) || phase === 'rolledBack' || phase === 'refused';
  const change = { phase, error: isKept ? state.error : null, restores: state.restores };
  return { change, then: hasEnded(moved) || phase === state.goal ? 'end' : 'proceed' };
}

const attempted = (state: UpgradeState): UpgradeState =>
  dataPhases.includes(state.phase) ? { ...state, restores: state.restores + 1 } : state;

/** Why an upgrade that has ended did not do what was wanted. */
export function failureOf({ phase, goal, error }: UpgradeState): Problem | undefined {
  const isFailure = phase === 'refused' || (phase === 'rolledBack' && goal !== 'rolledBack');
  return isFailure && error ? error : undefined;
}

/**
 * What somebody changes who wants one finished, perhaps with another engine, or rolled back. Throws `du_upgrade_state`
 * where that is not possible.
 */
export function goOn(
  state: UpgradeState,
  goal: Exclude<DuUpgradeGoal, 'prepared'>,
  { hasNewEngine = false } = {},
): Partial<UpgradeState> {
  const refuse = (detail: string) => new AppError('du_upgrade_state', { detail });
  if (hasEnded(state) || state.dryRun) throw refuse(`it has ended: ${state.phase}`);
  if (goal === 'rolledBack') {
    // Asked for once more, since the data could not be brought back: pushes are let in again all the same, and the
    // report says what is missing.
    const isStuck = state.phase === 'rollBackData' && state.error !== null;
    return { goal, ...(isStuck && { phase: 'rollBackOpen' as const }) };
  }
  if (isRollingBack(state) || state.phase === 'preflight') throw refuse(`it is at ${state.phase}`);
  // Another engine has to be put in, also when one was already.
  const isPastEngine = ['migrate', 'restore', 'compare', 'open'].includes(state.phase);
  return { goal, ...(hasNewEngine && isPastEngine && { phase: 'engine' as const }) };
}

/** What an error of an action means for the upgrade. */
export function outcomeOf(error: unknown): Exclude<Outcome, { kind: 'done' | 'cancelled' }> {
  const problem = toProblem(error);
  if (!(error instanceof AppError)) return { kind: 'failed', error: problem };
  // A program that does not run now will not do so later.
  if (error.family === 'unavailable' && !error.code.startsWith('registry_start'))
    return { kind: 'unavailable', error: problem };
  return { kind: needsSomebody.test(error.code) ? 'needsSomebody' : 'failed', error: problem };
}

/** What rolling back would fail with too: a key, a disk, a store that somebody has to bring. Then the job is retried. */
const needsSomebody = /^(registry_off|restore_unconfirmed|secrets_key_mismatch|space_insufficient|backup_.*)$/;
