import { createHash, randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { digestOf } from '@airdock/core/oci/digest';
import { tempDir } from '@airdock/testing/servers';
import { spawnSource } from '@airdock/testing/source-process';
import { describe, expect, it } from 'vitest';
import { createPooledDigest, digestOfFile } from './hash-pool.js';

describe('createPooledDigest', () => {
  it.each([0, 1, 262_144, 262_145, 5_000_000])(
    'hashes %d bytes as they are, whatever pieces they come in',
    async (size) => {
      const bytes = randomBytes(size);
      const digest = createPooledDigest();
      const half = Math.floor(size / 2);
      void digest.update(bytes.subarray(0, half));
      expect(await digest.prefix()).toBe(digestOf(bytes.subarray(0, half)));
      await digest.update(bytes.subarray(half));
      expect(await digest.value()).toBe(digestOf(bytes));
    },
  );

  it('keeps many digests apart, in memory that is shared and in memory that is not', async () => {
    const contents = Array.from({ length: 20 }, (_, index) => {
      const bytes = Buffer.from(index % 2 ? new SharedArrayBuffer(1_000_000) : new ArrayBuffer(1_000_000));
      return bytes.fill(randomBytes(999));
    });
    const digests = await Promise.all(
      contents.map(async (bytes) => {
        const digest = createPooledDigest();
        for (let at = 0; at < bytes.length; at += 300_000) await digest.update(bytes.subarray(at, at + 300_000));
        return digest.value();
      }),
    );
    expect(digests).toEqual(contents.map((bytes) => digestOf(bytes)));
  });

  it('leaves the main thread free', async () => {
    const bytes = Buffer.from(new SharedArrayBuffer(64 * 1024 * 1024));
    const digest = createPooledDigest();
    await digest.update(bytes.subarray(0, 1_000_000));
    const { eventLoopUtilization } = performance;
    const before = eventLoopUtilization();
    await digest.update(bytes);
    expect(eventLoopUtilization(before).utilization).toBeLessThan(0.5);
    expect(await digest.value()).toBe(
      `sha256:${createHash('sha256').update(bytes.subarray(0, 1_000_000)).update(bytes).digest('hex')}`,
    );
  });

  it('neither keeps a process alive nor lets it end before an answer', async () => {
    const module = new URL('./hash-pool.ts', import.meta.url).href;
    const script = `const { createPooledDigest } = await import(${JSON.stringify(module)}); const digest = createPooledDigest();
      await digest.update(new Uint8Array(1e7)); console.log(await digest.value()); void createPooledDigest().update(new Uint8Array(1e6));`;
    const stdout = await text(spawnSource(script).stdout);
    expect(stdout.trim()).toBe(digestOf(new Uint8Array(1e7)));
  });
});

describe('digestOfFile', () => {
  it('reads a file, a part of it, and stops when told', async () => {
    await using folder = await tempDir('digest');
    const path = join(folder.path, 'file');
    const bytes = randomBytes(9_000_001);
    await writeFile(path, bytes);
    let count = 0;
    const onBytes = (more: number) => {
      count += more;
    };
    expect(await digestOfFile(path, { onBytes })).toBe(digestOf(bytes));
    expect(count).toBe(bytes.length);
    for (const offset of [512, 1000])
      expect(await digestOfFile(path, { offset, size: 8_400_000 })).toBe(
        digestOf(bytes.subarray(offset, offset + 8_400_000)),
      );
    await expect(digestOfFile(path, { signal: AbortSignal.abort(new Error('enough')) })).rejects.toThrow('enough');
    await expect(digestOfFile(join(folder.path, 'none'))).rejects.toMatchObject({ code: 'ENOENT' });
  });
});
