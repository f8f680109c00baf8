import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { AppError } from '@airdock/core/errors';
import { diskError } from './durable-file.js';
import type { JoinedFile } from './joined-file.js';
import { blockSize, isTarHeader } from './tar-header.js';

export type Compression = 'gzip' | 'zstd' | 'xz';

/** What a file is compressed with, by its first bytes. */
export async function detectCompression(file: JoinedFile): Promise<Compression | undefined> {
  const start = Buffer.alloc(6);
  await file.read(start, 0, 6, 0);
  const magic = start.toString('hex');
  if (magic.startsWith('1f8b')) return 'gzip';
  if (magic.startsWith('28b52ffd')) return 'zstd';
  return magic === 'fd377a585a00' ? 'xz' : undefined;
}

/** Image layers shrink by 2 to 10; what grows by more than this is made to fill the disk. */
const maxRatio = 100;
const alwaysAllowedBytes = 1024 ** 3;

/** zstd by its own program, since zlib's stops silently after the first of several frames, which pzstd writes. Both have their memory bounded. */
const programs: Record<'zstd' | 'xz', string[]> = { zstd: ['-dcq', '--memory=128MB'], xz: ['-dcq', '--memlimit-decompress=256MiB'] };

/**
 * Decompresses a file into `target`, which must not exist. Throws `bundle_format_unknown` when no tar is inside, `bundle_truncated` and `bundle_corrupt` for damaged input, `bundle_unsafe` for
 * bombs, `space_insufficient`, and `bundle_format_unknown` too when the program for it is missing. The caller removes `target`, also after an error.
 */
export async function unpack(file: JoinedFile, compression: Compression, target: string, signal?: AbortSignal): Promise<void> {
  await mkdir(dirname(target), { recursive: true });
  const allowed = Math.max(alwaysAllowedBytes, file.size * maxRatio);
  let written = 0;
  let start = Buffer.alloc(0);
  const bound = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      if (start.byteLength < blockSize) {
        start = Buffer.concat([start, chunk]);
        // What is no tar need not be unpacked to the end to be refused.
        if (start.byteLength >= blockSize && !isTarHeader(start)) {
          done(new AppError('bundle_format_unknown', { detail: `the ${compression} file contains no tar archive` }));
          return;
        }
      }
      written += chunk.byteLength;
      if (written > allowed) done(new AppError('bundle_unsafe', { detail: `the file unpacks to more than ${allowed} bytes` }));
      else done(null, chunk);
    },
  });
  const input = file.stream(0, file.size);
  const output = createWriteStream(target, { flags: 'wx', mode: 0o600 });
  const options = signal ? { signal } : {};
  try {
    if (compression === 'gzip') await pipeline(input, createGunzip(), bound, output, options);
    else await throughProgram(compression, input, bound, output, options);
  } catch (error) {
    signal?.throwIfAborted();
    throw translate(error, compression, target);
  }
}

async function throughProgram(
  name: 'zstd' | 'xz',
  input: NodeJS.ReadableStream,
  bound: Transform,
  output: NodeJS.WritableStream,
  options: { signal?: AbortSignal },
): Promise<void> {
  const child = spawn(name, programs[name], { stdio: ['pipe', 'pipe', 'pipe'] });
  let words = '';
  child.stderr.on('data', (chunk: Buffer) => {
    words = (words + chunk.toString('utf8')).slice(0, 500);
  });
  const ended = once(child, 'close').then(([code]) => {
    if (code !== 0)
      throw new AppError(/unexpected end|premature/i.test(words) ? 'bundle_truncated' : 'bundle_corrupt', {
        detail: `${name}: ${words.trim() || `ended with ${code}`}`,
      });
  });
  // A program that gives up closes its input; its own words say why, so they are preferred to EPIPE.
  const fed = pipeline(input, child.stdin, options).catch((error: unknown) => ended.then(() => Promise.reject(error as Error)));
  try {
    await Promise.all([pipeline(child.stdout, bound, output, options), ended, fed]);
  } finally {
    child.kill('SIGKILL');
  }
}

function translate(error: unknown, compression: Compression, target: string): unknown {
  if (error instanceof AppError) return error;
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  if (code === 'ENOENT')
    return new AppError(
      'bundle_format_unknown',
      { detail: `the file is compressed with ${compression}, and there is no program for it; decompress it first` },
      { cause: error },
    );
  if (code === 'Z_BUF_ERROR') return new AppError('bundle_truncated', { detail: 'the compressed file ends too early' }, { cause: error });
  if (code.startsWith('Z_')) return new AppError('bundle_corrupt', { detail: `the ${compression} data is damaged` }, { cause: error });
  return diskError(error, target);
}
