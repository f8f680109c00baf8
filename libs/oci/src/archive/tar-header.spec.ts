import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  blockSize,
  isTarHeader,
  isZeroBlock,
  mergeOverrides,
  parsePax,
  parseTarHeader,
  tarText,
  withOverrides,
} from './tar-header.js';

const sizeAt = 124;

function header({ name = 'a', type = '0', linkName = '', size = 0, prefix = '', magic = 'ustar\0' }): Buffer {
  const block = Buffer.alloc(blockSize);
  block.write(name, 0);
  block.write(size.toString(8).padStart(11, '0'), sizeAt);
  block.write(type, 156, 'latin1');
  block.write(linkName, 157);
  block.write(magic, 257, 'latin1');
  block.write(prefix, 345);
  return withChecksum(block);
}

function withChecksum(block: Buffer): Buffer {
  block.fill(' ', 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

const utf8Of = (maxBytes: number) =>
  fc
    .string({ unit: 'grapheme', minLength: 1, maxLength: maxBytes })
    .filter((text) => !text.includes('\0') && Buffer.byteLength(text) <= maxBytes);

/** A record of a PAX header: its length counts its own digits. */
function record(key: string, value: string): Buffer {
  const rest = Buffer.byteLength(` ${key}=${value}\n`);
  let length = rest + 1;
  while (rest + String(length).length !== length) length = rest + String(length).length;
  return Buffer.from(`${length} ${key}=${value}\n`);
}

describe('parseTarHeader', () => {
  it('reads what was written, whatever the names and the size are', () => {
    fc.assert(
      fc.property(
        utf8Of(100),
        utf8Of(100),
        utf8Of(155),
        fc.nat({ max: 0o7777777777 }),
        (name, linkName, prefix, size) => {
          const block = header({ name, linkName, prefix, size, type: '2' });
          expect(isTarHeader(block)).toBe(true);
          expect(parseTarHeader(block)).toEqual({ name: `${prefix}/${name}`, linkName, size, type: '2' });
        },
      ),
    );
  });

  it('finds no prefix where GNU tar keeps other things', () => {
    expect(parseTarHeader(header({ prefix: 'times', magic: 'ustar  \0' })).name).toBe('a');
  });

  it('reports the old ways of saying "a file" as one', () => {
    for (const type of ['0', '7', '\0']) expect(parseTarHeader(header({ type })).type).toBe('0');
  });

  it('reads sizes in binary up to the largest safe number, and refuses larger and negative ones', () => {
    const binary = (size: bigint, first = 0x80) => {
      const block = header({});
      block.fill(0, sizeAt, sizeAt + 12);
      block.writeBigUInt64BE(size, sizeAt + 4);
      block[sizeAt] = first;
      return () => parseTarHeader(withChecksum(block)).size;
    };
    fc.assert(
      fc.property(fc.maxSafeNat(), (size) => {
        expect(binary(BigInt(size))()).toBe(size);
      }),
    );
    for (const parse of [binary(BigInt(Number.MAX_SAFE_INTEGER) + 1n), binary(0n, 0xff)])
      expect(parse).toThrow(expect.objectContaining({ code: 'bundle_unsafe' }));
  });

  it('refuses a size that is not octal', () => {
    const block = header({});
    block.write('9', sizeAt);
    expect(() => parseTarHeader(withChecksum(block))).toThrow(expect.objectContaining({ code: 'bundle_corrupt' }));
  });
});

describe('isTarHeader', () => {
  it('sees each byte that was changed', () => {
    fc.assert(
      fc.property(
        fc.nat({ max: blockSize - 1 }).filter((at) => at < 148 || at >= 156),
        fc.integer({ min: 1, max: 255 }),
        (at, difference) => {
          const block = header({ name: 'image/layer.tar', size: 1234 });
          block[at] = ((block[at] ?? 0) + difference) % 256;
          expect(isTarHeader(block)).toBe(false);
        },
      ),
    );
  });

  it('takes no block of zeros and no part of a header for one', () => {
    expect(isTarHeader(Buffer.alloc(blockSize))).toBe(false);
    expect(isTarHeader(header({}).subarray(0, -1))).toBe(false);
    expect([isZeroBlock(Buffer.alloc(blockSize)), isZeroBlock(header({}))]).toEqual([true, false]);
  });
});

describe('parsePax', () => {
  const values = { path: 'name', linkpath: 'linkName', size: 'size' } as const;

  it('reads what concerns us, in any order and between anything else', () => {
    const ours = fc.record({ path: utf8Of(300), linkpath: utf8Of(300), size: fc.nat() }, { requiredKeys: [] });
    const others = fc.dictionary(fc.stringMatching(/^[a-z]{1,5}\.[a-z]{1,5}$/), utf8Of(100));
    fc.assert(
      fc.property(ours, others, fc.infiniteStream(fc.nat()), (known, unknown, order) => {
        const records = [...Object.entries(known), ...Object.entries(unknown)]
          .map(([key, value]) => ({ at: order.next().value as number, bytes: record(key, String(value)) }))
          .sort((one, other) => one.at - other.at);
        const expected = Object.fromEntries(
          Object.entries(known).map(([key, value]) => [values[key as keyof typeof values], value]),
        );
        expect(parsePax(Buffer.concat(records.map(({ bytes }) => bytes)), 'next')).toEqual(expected);
      }),
    );
  });

  it('refuses a header that was cut within a record', () => {
    const whole = Buffer.concat([record('path', 'images/ä'), record('size', '12')]);
    const ends = new Set([0, record('path', 'images/ä').length, whole.length]);
    for (let length = 0; length <= whole.length; length++) {
      const parse = () => parsePax(whole.subarray(0, length), 'next');
      if (ends.has(length)) expect(parse).not.toThrow();
      else expect(parse, `${length}`).toThrow(expect.objectContaining({ code: 'bundle_corrupt' }));
    }
  });

  it('throws nothing but errors of ours for any bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        try {
          parsePax(bytes, 'next');
        } catch (error) {
          expect(error).toMatchObject({ code: expect.stringMatching(/^bundle_(corrupt|unsafe)$/) });
        }
      }),
    );
  });

  it.each([
    ['two names', [record('path', 'a'), record('path', 'b')], 'next'],
    ['a NUL in a name', [record('path', 'a\0b')], 'next'],
    ['a negative size', [record('size', '-1')], 'next'],
    ['a sparse file', [record('GNU.sparse.major', '1')], 'next'],
    ['a name for all members', [record('path', 'a')], 'global'],
    ['a name that is not UTF-8', [Buffer.from('9 path=\xff\n', 'latin1')], 'next'],
  ] as const)('refuses %s', (_what, records, scope) => {
    expect(() => parsePax(Buffer.concat(records), scope)).toThrow(expect.objectContaining({ code: 'bundle_unsafe' }));
  });
});

describe('what extension headers say', () => {
  const member = { name: 'a', size: 5, type: '0', linkName: '' };

  it('counts before what the header says, and may not disagree with each other', () => {
    expect(withOverrides(member, mergeOverrides({ name: 'b' }, { name: 'b', linkName: 'c' }))).toEqual({
      ...member,
      name: 'b',
      linkName: 'c',
    });
    for (const [one, other] of [
      [{ name: 'b' }, { name: 'c' }],
      [{ linkName: 'b' }, { linkName: 'c' }],
      [{ size: 1 }, { size: 0 }],
    ] as const)
      expect(() => mergeOverrides(one, other)).toThrow(expect.objectContaining({ code: 'bundle_unsafe' }));
  });

  it('changes a size only where the header has no room for it', () => {
    const large = 0o77777777777;
    expect(withOverrides(member, { size: large }).size).toBe(large);
    expect(withOverrides(member, { size: 5 }).size).toBe(5);
    expect(() => withOverrides(member, { size: 6 })).toThrow(expect.objectContaining({ code: 'bundle_unsafe' }));
  });
});

it('tarText ends at the first NUL, keeps a byte order mark, and refuses what is not UTF-8', () => {
  expect(tarText(Buffer.from('ab\0c'))).toBe('ab');
  expect(tarText(Buffer.from('\ufeffa'))).toBe('\ufeffa');
  expect(() => tarText(Buffer.from([0xc3, 0x28]))).toThrow(expect.objectContaining({ code: 'bundle_unsafe' }));
});
