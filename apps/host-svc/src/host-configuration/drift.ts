import { now } from '@airdock/platform/database';
import type { Change, Drift } from '../host/host.schema.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';

/**
 * What is known of a host's drift after a configuration has ended on it. Where that failed, what was known before and
 * was not put right stays: a host that cannot be reached is not fine for that.
 */
export function driftAfter(
  before: Drift | null,
  { steps, error }: HostConfigurationResult,
  dryRun: boolean,
  configurationId: string,
): Drift {
  const found = steps.flatMap(({ changes }) => changes);
  const isFound = (known: Change) => found.some(({ kind, target }) => kind === known.kind && target === known.target);
  const rest = error ? (before?.changes ?? []).filter((known) => !isFound(known)) : [];
  return { checkedAt: now(), changes: dryRun ? [...found, ...rest] : rest, error, configurationId };
}

/** What people are told when it is another word than before. */
export function driftWord(drift: Drift | null): 'as configured' | 'drifted' | 'unknown' {
  if (drift?.error) return 'unknown';
  return drift && drift.changes.length > 0 ? 'drifted' : 'as configured';
}
