/** How long a command may take in all, by what it does: a host may make each of its bytes wait. */
const deadlinesMs = { look: 120_000, work: 3_600_000, transfer: 6 * 3_600_000 };
/** What a command does, which decides how long it may take in all. */
export type CommandKind = keyof typeof deadlinesMs;

/** The stall timeout of a command that says none. */
export const defaultStallMs = 120_000;
/** How long something on a host may take in all: by its kind, or by how long it may say nothing. */
export const deadlineOf = (stallTimeoutMs: number, kind?: CommandKind): number =>
  deadlinesMs[kind ?? (stallTimeoutMs > defaultStallMs ? 'work' : 'look')];
/**
 * For the first commands on a host, which have nothing to do: one that hangs is not waited for as long as one that
 * works.
 */
export const firstCommandMs = 30_000;

/** Calls `onStall` when nobody has touched it for so long. */
export function stallTimer(ms: number, onStall: () => void) {
  let last = Date.now();
  const check = () => {
    if (Date.now() - last < ms) return;
    clearInterval(timer);
    onStall();
  };
  const timer = setInterval(check, Math.min(ms, 1_000));
  const touch = () => {
    last = Date.now();
  };
  return { touch, stop: () => clearInterval(timer) };
}

/** Passes chunks on, and touches at each. */
export const touching = (touch: () => void) =>
  async function* (source: AsyncIterable<Buffer>) {
    for await (const chunk of source) {
      touch();
      yield chunk;
    }
  };
