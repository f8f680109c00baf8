import { openSync, readFileSync, writeSync } from 'node:fs';

/** A UUID, or as many blanks. */
const width = 36;
const nobody = ' '.repeat(width);

let file: number | undefined;
let written = nobody;
let isClearing = false;

/**
 * From now on this process notes in a file whose data it looks at: whoever ends it because it is frozen reads there
 * what it was frozen by.
 */
export function noteServedHosts(path: string): void {
  file = openSync(path, 'w', 0o600);
  write(nobody);
}

/**
 * What is done from here to the next turn of the event loop is done with data of this host. Costs about a microsecond,
 * and only when it is another host than before; nothing in a process that notes nothing.
 */
export function serveHost(hostId: string): void {
  if (file === undefined) return;
  if (hostId !== written) write(hostId);
  if (isClearing) return;
  isClearing = true;
  setImmediate(() => {
    isClearing = false;
    if (written !== nobody) write(nobody);
  });
}

/** The host that a process was busy with when it was ended, or is; undefined for none. */
export function servedHostOf(path: string): string | undefined {
  try {
    return /^[0-9a-f-]{36}$/.exec(readFileSync(path, 'utf8'))?.[0];
  } catch {
    return undefined;
  }
}

function write(hostId: string): void {
  // In one piece, at the beginning: the reader sees the one or the other.
  writeSync(file as number, hostId.padEnd(width).slice(0, width), 0);
  written = hostId;
}
