/** How many of the newest backups are kept, and of how many days, weeks and months one each. */
export interface RetentionPolicy {
  last: number;
  daily: number;
  weekly: number;
  monthly: number;
}

/** A backup, as keep rules see it. */
export interface RetainedBackup {
  id: string;
  /** RFC 3339, UTC. */
  createdAt: string;
  /** Order in the store; a clock that was set back does not change it. */
  sequence: number;
}

type Period = keyof Omit<RetentionPolicy, 'last'>;

/** Days are those of UTC; weeks begin on Monday. */
const bucketOf: Record<Period, (at: Date) => string> = {
  daily: (at) => at.toISOString().slice(0, 10),
  weekly: (at) => {
    const monday = new Date(at);
    monday.setUTCDate(at.getUTCDate() - ((at.getUTCDay() + 6) % 7));
    return monday.toISOString().slice(0, 10);
  },
  monthly: (at) => at.toISOString().slice(0, 7),
};

/**
 * Why each backup is kept; those without a reason may go. Of a day, week or month the newest backup counts, and periods
 * without one do not: `daily: 7` keeps backups of the last seven days that have any.
 */
export function reasonsToKeep(backups: readonly RetainedBackup[], policy: RetentionPolicy): Map<string, string[]> {
  const newestFirst = backups.toSorted(
    (a, b) => b.sequence - a.sequence || b.createdAt.localeCompare(a.createdAt) || b.id.localeCompare(a.id),
  );
  const reasons = new Map<string, string[]>(newestFirst.map(({ id }) => [id, []]));
  for (const { id } of newestFirst.slice(0, policy.last)) reasons.get(id)?.push('last');
  for (const period of ['daily', 'weekly', 'monthly'] as const) {
    const seen = new Set<string>();
    for (const { id, createdAt } of newestFirst) {
      const bucket = bucketOf[period](new Date(createdAt));
      if (seen.has(bucket) || seen.size >= policy[period]) continue;
      seen.add(bucket);
      reasons.get(id)?.push(`${period} ${bucket}`);
    }
  }
  return reasons;
}
