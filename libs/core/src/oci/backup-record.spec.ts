import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type BackupContent,
  formatBackupRecord,
  isBackupId,
  maxBackupRecordBytes,
  parseBackupRecord,
} from './backup-record.js';
import { digestOf } from './digest.js';
import { manifestMediaTypes, mediaTypes } from './manifest.js';

const manifest = { digest: digestOf('manifest'), size: 8 };
const layer = { digest: digestOf('layer'), size: 5 };
const state = { digest: digestOf('state'), size: 6 };
const content = (more: Partial<BackupContent> = {}): BackupContent => ({
  id: 'monday',
  createdAt: '2026-11-30T01:02:03.000Z',
  sequence: 3,
  references: [{ repository: 'pause', tag: '3.9', mediaType: mediaTypes.ociManifest, ...manifest }],
  settings: [{ service: 'host', ...state }],
  blobs: [manifest, layer, state],
  ...more,
});
/** The document of a record, changed by hand. */
const parse = (change: (document: Record<string, unknown>) => unknown, id = 'monday') => {
  const document = JSON.parse(formatBackupRecord(content(), 2).toString()) as Record<string, unknown>;
  return parseBackupRecord(Buffer.from(JSON.stringify(change(document) ?? document)), id);
};
const corrupt = (detail: string) =>
  expect.objectContaining({ code: 'backup_corrupt', message: expect.stringContaining(detail) as string });

const digests = fc.string().map((text) => digestOf(text));
const plainText = fc.stringMatching(/^[ -~\n\t]{0,50}$/);
const contents = fc
  .record({
    id: fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_-]{0,20}$/),
    createdAt: fc
      .date({ min: new Date(0), max: new Date('2999-01-01'), noInvalidDate: true })
      .map((at) => at.toISOString()),
    sequence: fc.nat({ max: 1_000_000 }),
    blobs: fc.uniqueArray(fc.record({ digest: digests, size: fc.nat() }), { selector: ({ digest }) => digest }),
    services: fc.uniqueArray(fc.stringMatching(/^[a-z]{1,10}$/), { maxLength: 4 }),
    names: fc.array(
      fc.record({
        // Few of each, so that names share repositories and blobs.
        repository: fc.constantFrom('pause', 'deep/pause'),
        tag: fc.option(fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,9}$/), { nil: undefined }),
        mediaType: fc.constantFrom(...manifestMediaTypes),
        blob: fc.nat({ max: 2 }),
      }),
      { maxLength: 6 },
    ),
    description: fc.option(plainText, { nil: undefined }),
    duVersion: fc.option(plainText, { nil: undefined }),
    repositories: fc.option(fc.array(plainText, { maxLength: 3 }), { nil: undefined }),
  })
  .map(({ services, names, ...rest }): BackupContent => {
    const of = (index: number) => rest.blobs[index % rest.blobs.length];
    return {
      ...rest,
      settings: services.flatMap((service, index) => {
        const blob = of(index);
        return blob ? [{ service, ...blob }] : [];
      }),
      references: names.flatMap(({ blob: index, ...name }) => {
        const blob = of(index);
        return blob ? [{ ...name, ...blob }] : [];
      }),
    };
  });

describe('the record of a backup', () => {
  it('reads back what was written, and is written again as the same bytes', () => {
    fc.assert(
      fc.property(contents, fc.constantFrom(1 as const, 2 as const), (wanted, version) => {
        const bytes = formatBackupRecord(wanted, version);
        const record = parseBackupRecord(bytes, wanted.id);
        expect(record).toMatchObject({
          formatVersion: version,
          id: wanted.id,
          createdAt: wanted.createdAt,
          sequence: wanted.sequence,
          totalBytes: wanted.blobs.reduce((sum, { size }) => sum + size, 0),
        });
        expect(record.description).toBe(wanted.description);
        expect(record.repositories).toEqual(wanted.repositories);
        expect(new Set(record.blobs.map(({ digest }) => digest))).toEqual(
          new Set(wanted.blobs.map(({ digest }) => digest)),
        );
        expect(record.references).toHaveLength(wanted.references.length);
        expect(formatBackupRecord(record, version)).toEqual(bytes);
      }),
    );
  });

  it('has the same bytes in whatever order its parts come', () => {
    const shuffled = (wanted: BackupContent) =>
      fc.record({
        references: fc.shuffledSubarray(wanted.references, { minLength: wanted.references.length }),
        settings: fc.shuffledSubarray(wanted.settings, { minLength: wanted.settings.length }),
        blobs: fc.shuffledSubarray(wanted.blobs, { minLength: wanted.blobs.length }),
      });
    const unlike = contents.filter(
      ({ references }) =>
        new Set(references.map(({ repository, tag, digest }) => `${repository}:${tag}@${digest}`)).size ===
        references.length,
    );
    const pairs = unlike.chain((wanted) => shuffled(wanted).map((parts) => [wanted, { ...wanted, ...parts }] as const));
    fc.assert(
      fc.property(pairs, ([one, other]) => {
        expect(formatBackupRecord(other)).toEqual(formatBackupRecord(one));
      }),
    );
  });

  it('ends with a line end, for those who look at it by common tools', () =>
    expect(formatBackupRecord(content()).toString()).toMatch(/^\{\n {2}"formatVersion": 1,[^]*\}\n$/));

  it('of a version before there were sequences and settings reads too', () =>
    expect(parse((document) => ({ ...document, sequence: undefined, settings: undefined }))).toMatchObject({
      sequence: 0,
      settings: [],
    }));

  it('of a later version is told from one that is damaged', () => {
    expect(() => parse((document) => ({ ...document, formatVersion: 3 }))).toThrow(
      expect.objectContaining({ code: 'backup_format_unsupported' }),
    );
    expect(() => parse((document) => ({ ...document, formatVersion: '1' }))).toThrow(corrupt('formatVersion'));
  });

  it.each(['', '[', 'null', '"monday"', '1'])('is not %j', (text) =>
    expect(() => parseBackupRecord(Buffer.from(text), 'monday')).toThrow(corrupt('the record of backup monday is')),
  );

  it('is not read when it is larger than any', () =>
    expect(() => parseBackupRecord(Buffer.alloc(maxBackupRecordBytes + 1, ' '), 'monday')).toThrow(
      corrupt(`more than ${maxBackupRecordBytes} bytes`),
    ));

  it.each<[string, object, string]>([
    ['of another backup', { id: 'tuesday' }, 'says it is tuesday'],
    ['with an id that is a path', { id: '../x' }, 'id'],
    ['without lists', { references: undefined }, 'has no references'],
    ['with something else for a list', { blobs: {} }, 'has no blobs'],
    ['with a blob twice', { blobs: [manifest, layer, state, layer] }, 'lists a blob twice'],
    ['with another sum', { totalBytes: 18 }, 'does not have the bytes that it says'],
    ['without a blob that a name needs', { blobs: [layer, state], totalBytes: 11 }, 'which pause names'],
    ['without a blob of its settings', { blobs: [manifest, layer], totalBytes: 13 }, 'does not list its settings'],
    [
      'with two states of one service',
      { settings: ['host', 'host'].map((service) => ({ service, ...state })) },
      'two states of one service',
    ],
    ['with a size below zero', { blobs: [{ ...layer, size: -1 }] }, 'blobs.0.size'],
    ['with a date that is none', { createdAt: 'yesterday' }, 'createdAt'],
    ['with a sequence that leaves no room', { sequence: 1e15 }, 'sequence'],
    ['with a key that is none', { importedFrom: 'SHA256:short' }, 'importedFrom'],
    ['with control characters', { description: 'a\u001b[2Jb' }, 'has control characters'],
    ['with half a character', { description: '\ud800' }, 'has control characters'],
    ['with NUL in a pattern', { repositories: ['a\0'] }, 'repositories.0 has control characters'],
    ['with a long description', { description: 'a'.repeat(2_001) }, 'description'],
    ['with too many states', { settings: Array(21).fill({ service: 'host', ...state }) }, 'at most 20 are read'],
  ])('is refused %s', (_, change, detail) =>
    expect(() => parse((document) => ({ ...document, ...change }))).toThrow(corrupt(detail)),
  );

  it.each<[string, object]>([
    ['repository', { repository: '../etc' }],
    ['tag', { tag: 'a b' }],
    ['digest', { digest: 'sha256:0' }],
    ['mediaType', { mediaType: mediaTypes.ociConfig }],
    ['size', { size: 1.5 }],
  ])('says which %s of which name is wrong', (field, change) => {
    const [reference] = content().references;
    expect(() => parse((document) => ({ ...document, references: [reference, { ...reference, ...change }] }))).toThrow(
      corrupt(`references.1.${field}`),
    );
  });

  it('refuses sizes whose sum no number holds', () => {
    const size = Number.MAX_SAFE_INTEGER;
    expect(() =>
      parse((document) => ({
        ...document,
        references: [],
        settings: [],
        blobs: [
          { ...manifest, size },
          { ...layer, size },
        ],
        totalBytes: size,
      })),
    ).toThrow(corrupt(''));
  });
});

describe('the id of a backup', () => {
  it.each(['a', 'A-1_b', '0', 'a'.repeat(128)])('may be %s', (id) => expect(isBackupId(id)).toBe(true));
  it.each(['', '-a', '_a', 'a.b', 'a/b', '..', 'a b', 'ä', 'a\n', 'a'.repeat(129)])('is not %j', (id) =>
    expect(isBackupId(id)).toBe(false),
  );
});
