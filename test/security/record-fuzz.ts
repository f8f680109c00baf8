/**
 * Files of backup records as somebody may write them: changed by chance in bytes, words and shape, small and large.
 * Each must be read or refused with a code of its own, within a second. `node test/dist/security/record-fuzz.js
 * --seconds 600 --seed 7`, one of them again with `--first N --cases 1`; the suite runs it for a moment.
 */
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { BackupStore } from '@airdock/backup-store/backup-store';
import { FolderStorage } from '@airdock/backup-store/folder-storage';
import { formatSignature, parsePublicKey, signingKeyOf } from '@airdock/backup-store/record-signature';
import { AppError } from '@airdock/core/errors';
import { formatBackupRecord } from '@airdock/core/oci/backup-record';
import { digestOf } from '@airdock/core/oci/digest';
import { mediaTypes } from '@airdock/core/oci/manifest';

export interface FuzzResult {
  seed: number;
  cases: number;
  /** Of the cases, by code; `read` for those that are right. */
  ends: Record<string, number>;
  /** Of the processor: others may have it too. */
  slowestMs: number;
  /** What must not be: other errors, and what took too long. Each can be had again by its seed and number. */
  findings: string[];
}

const maxMs = 1_000;
const id = 'b';
const [own, other] = [signingKeyOf(Buffer.alloc(32, 1)), signingKeyOf(Buffer.alloc(32, 2))];
const words = [
  '__proto__',
  'constructor',
  'toString',
  'references',
  'blobs',
  'settings',
  'id',
  '',
  '\0',
  '\u202e',
  'a'.repeat(70_000),
  '../x',
  'sha256:',
  '-1',
];

/** Numbers by chance, the same for the same seed: mulberry32. */
function random(seed: number) {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (count: number) => Math.floor(next() * count);
  return { next, below, pick: <T>(all: readonly T[]): T => all[below(all.length)] as T };
}
type Random = ReturnType<typeof random>;

function validRecord({ below }: Random): Buffer {
  const blobs = Array.from({ length: 1 + below(20) }, (_, index) => ({
    digest: digestOf(Buffer.from(`${index}`)),
    size: 1 + below(1_000_000),
  }));
  const references = blobs
    .slice(0, 1 + below(blobs.length))
    .map((blob, index) => ({ ...blob, repository: `a/b${index}`, tag: 'v1', mediaType: mediaTypes.ociManifest }));
  return formatBackupRecord(
    {
      id,
      createdAt: '2024-01-01T00:00:00.000Z',
      sequence: below(100),
      references,
      settings: [],
      blobs,
      description: 'a backup',
    },
    2,
  );
}

const strange = ({ pick, below, next }: Random): unknown =>
  pick<() => unknown>([
    () => null,
    () => next() * 2 ** 70,
    () => -below(10),
    () => pick(words),
    () => [],
    () => ({ [pick(words)]: pick(words) }),
    () => Array.from({ length: below(3_000) }, () => ({})),
    () => true,
  ])();

/** Changes a value somewhere in a document. */
function changeShape(value: unknown, dice: Random): unknown {
  if (typeof value !== 'object' || value === null || dice.next() < 0.15) return strange(dice);
  const keys = Object.keys(value);
  const key = dice.pick([...keys, dice.pick(words)]);
  if (Array.isArray(value))
    return value.map((one: unknown, index) => (String(index) === key ? changeShape(one, dice) : one));
  if (dice.next() < 0.2) return Object.fromEntries(Object.entries(value).filter(([name]) => name !== key));
  return { ...value, [key]: changeShape((value as Record<string, unknown>)[key], dice) };
}

function changeBytes(bytes: Buffer, { below, pick, next }: Random): Buffer {
  const changed = Buffer.from(bytes);
  for (let count = 1 + below(8); count > 0; count--)
    changed[below(changed.byteLength)] = pick([0, 0x22, 0x5b, 0x5d, 0x7b, 0x7d, 0x2c, 0x5c, 0xff, below(256)]);
  return next() < 0.2 ? changed.subarray(0, below(changed.byteLength)) : changed;
}

/** Much of one thing: what costs memory or time where it is not counted. */
function large({ pick, below }: Random): Buffer {
  const unit = pick([
    '{},',
    '[',
    '{"a":',
    '"",',
    '1,',
    '\\"',
    ' ',
    '"\\\\',
    '{"references":[',
    '[[],',
    'null,',
    '{"id":"b","id":"b"},',
    '\u00e9',
    '0',
  ]);
  const count = Math.floor((below(12) * 1024 * 1024) / unit.length) + 1;
  const keys = () => Array.from({ length: below(200_000) }, (_, index) => `"k${index}":0`).join(',');
  return Buffer.from(
    pick([
      () => `{"formatVersion":2,"references":[${unit.repeat(count)}{}]}`,
      () => unit.repeat(count),
      () => `"${unit.repeat(count)}"`,
      () => `{${keys()}}`,
    ])(),
  );
}

function caseOf(dice: Random): Buffer {
  const valid = validRecord(dice);
  return dice.pick([
    () => valid,
    () => changeBytes(valid, dice),
    () => changeBytes(valid, dice),
    () => Buffer.from(JSON.stringify(changeShape(JSON.parse(valid.toString('utf8')), dice))),
    () => Buffer.from(JSON.stringify(changeShape(JSON.parse(valid.toString('utf8')), dice))),
    () => (dice.next() < 0.05 ? large(dice) : changeBytes(valid, dice)),
  ])();
}

export interface FuzzOptions {
  seed: number;
  seconds: number;
  /** The number of the case to begin with. Default 0. */
  first?: number;
  cases?: number;
}

/** Reads files until the time is over or so many were read. */
export async function fuzzRecords({
  seed,
  seconds,
  first = 0,
  cases = Number.POSITIVE_INFINITY,
}: FuzzOptions): Promise<FuzzResult> {
  const folder = await mkdtemp(join(tmpdir(), 'airdock-record-fuzz-'));
  const result: FuzzResult = { seed, cases: 0, ends: {}, slowestMs: 0, findings: [] };
  try {
    const storage = await FolderStorage.open(folder);
    await using store = await BackupStore.open(storage, { signatures: { own, trusted: [parsePublicKey(other.text)] } });
    await mkdir(join(folder, 'backups'), { recursive: true });
    const file = join(folder, 'backups', `${id}.json`);
    for (
      const end = performance.now() + seconds * 1000;
      performance.now() < end && result.cases < cases && result.findings.length < 20;
      result.cases++
    ) {
      const number = first + result.cases;
      const dice = random(seed * 1_000_003 + number);
      const bytes = caseOf(dice);
      await writeFile(file, bytes);
      const checksum = `${createHash('sha256').update(bytes).digest('hex')}  ${id}.json\n`;
      await writeFile(`${file}.sha256`, dice.next() < 0.95 ? checksum : changeBytes(Buffer.from(checksum), dice));
      const signature = formatSignature(dice.pick([own, other, signingKeyOf(Buffer.alloc(32, 3))]), bytes);
      if (dice.next() < 0.9)
        await writeFile(`${file}.sig`, dice.next() < 0.8 ? signature : changeBytes(signature, dice));
      else await rm(`${file}.sig`, { force: true });
      const before = process.cpuUsage();
      let ended = 'read';
      try {
        await store.readSigned(id, { allowUnsigned: dice.next() < 0.9 });
      } catch (error) {
        ended = error instanceof AppError ? error.code : String(error);
        if (!(error instanceof AppError) || error.family === 'internal')
          result.findings.push(`case ${number}: ${ended.slice(0, 200)}`);
        else if (error.message.length > 2_000)
          result.findings.push(`case ${number}: an error of ${error.message.length} characters`);
      }
      const { user, system } = process.cpuUsage(before);
      const took = (user + system) / 1000;
      result.slowestMs = Math.max(result.slowestMs, Math.round(took));
      if (took > maxMs) result.findings.push(`case ${number}: took ${Math.round(took)} ms`);
      result.ends[ended] = (result.ends[ended] ?? 0) + 1;
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  return result;
}

if (process.argv[1]?.endsWith('record-fuzz.js')) {
  const { values } = parseArgs({
    options: {
      first: { type: 'string', default: '0' },
      cases: { type: 'string' },
      seconds: { type: 'string', default: '60' },
      seed: { type: 'string', default: String(Date.now() % 100_000) },
    },
  });
  const result = await fuzzRecords({
    seed: Number(values.seed),
    seconds: Number(values.seconds),
    first: Number(values.first),
    ...(values.cases && { cases: Number(values.cases) }),
  });
  process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
  process.exit(result.findings.length > 0 ? 1 : 0);
}
