import { randomUUID } from 'node:crypto';
import { readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';

const verdict = z.object({
  /** Of the process that is no more, as its leases name it. */
  owner: z.string().min(3).max(300),
  /** Whose data it was looking at; null when nobody can be named. */
  hostId: z.uuid().nullable(),
  reason: z.enum(['silent', 'memory', 'crashed']),
  at: z.iso.datetime(),
});
/**
 * What is known of a worker that was ended, or ended by itself: for the next one, which acts on it before it serves
 * anybody.
 */
export type WorkerVerdict = z.infer<typeof verdict>;

const isVerdict = (name: string) => name.startsWith('host-verdict-') && name.endsWith('.json');

/** Of those that name nobody, which a worker that cannot start leaves too, as while its database is away. */
const maxUnnamed = 100;

/**
 * Leaves a verdict in the run folder, where it outlives also the process that gives it. While nobody acts on them the
 * newest of each host is kept; what the dead processes of the others held is freed when their leases have ended.
 */
export function leaveVerdict(runDir: string, value: WorkerVerdict): void {
  const path = join(runDir, `host-verdict-${randomUUID()}.json`);
  writeFileSync(`${path}.new`, JSON.stringify(value), { mode: 0o600 });
  renameSync(`${path}.new`, path);
  // This one, whatever the clock says.
  const kept = new Map([[value.hostId, 1]]);
  const others = findVerdicts(runDir).filter((found) => found.path !== path);
  for (const { value: found, done } of others.toSorted(
    (one, other) => Date.parse(other.value.at) - Date.parse(one.value.at),
  )) {
    const count = (kept.get(found.hostId) ?? 0) + 1;
    kept.set(found.hostId, count);
    if (count > (found.hostId === null ? maxUnnamed : 1)) done();
  }
}

/** The verdicts that nobody has acted on yet; each with what takes it away. What is none is left out and taken away. */
export function findVerdicts(runDir: string): { path: string; value: WorkerVerdict; done(): void }[] {
  let names: string[];
  try {
    names = readdirSync(runDir).filter(isVerdict);
  } catch {
    return [];
  }
  return names.flatMap((name) => {
    const path = join(runDir, name);
    const done = () => rmSync(path, { force: true });
    try {
      return [{ path, value: verdict.parse(JSON.parse(readFileSync(path, 'utf8'))), done }];
    } catch {
      done();
      return [];
    }
  });
}
