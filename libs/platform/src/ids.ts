import { createHash, randomBytes } from 'node:crypto';

const uuid = (bytes: Buffer, version: number): string => {
  bytes[6] = ((bytes[6] as number) & 0x0f) | (version << 4);
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80;
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
};

let lastMs = 0;
let sequence = 0;

/**
 * A UUID version 7 (RFC 9562): sorts by time of creation, also within one millisecond of one process, so it serves as a
 * page cursor.
 */
export function newId(): string {
  const ms = Math.max(Date.now(), lastMs);
  sequence = ms === lastMs ? sequence + 1 : 0;
  lastMs = ms;
  const bytes = randomBytes(16);
  bytes.writeUIntBE(ms, 0, 6);
  bytes.writeUInt16BE(sequence & 0x0fff, 6);
  return uuid(bytes, 7);
}

/** The same text always gives the same UUID (version 8). */
export const idOf = (text: string): string => uuid(createHash('sha256').update(text).digest().subarray(0, 16), 8);
