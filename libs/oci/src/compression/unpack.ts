import { type FileHandle, mkdir, open, rm, rmdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { AppError } from '@airdock/core/errors';
import { diskError } from '@airdock/disk/files/durable-file';
import { inSandbox } from '@airdock/disk/programs/sandbox';
import { startFilter } from '@airdock/disk/programs/start-program';
import type { JoinedFile } from '../archive/joined-file.js';
import { blockSize, isTarHeader } from '../archive/tar-header.js';

/** How a file is compressed, by its first bytes. */
export type Compression = 'gzip' | 'zstd' | 'xz';

const isReadable = (name: string): name is Compression => name === 'gzip' || name === 'zstd' || name === 'xz';

/** First bytes in hexadecimal. A zstd file may begin with a skippable frame; pzstd's does. */
const magics: readonly [RegExp, string][] = [
  [/^1f8b/, 'gzip'],
  [/^(28b52ffd|5.2a4d18)/, 'zstd'],
  [/^fd377a585a00/, 'xz'],
  [/^425a68/, 'bzip2'],
  [/^(04224d18|02214c18)/, 'lz4'],
  [/^4c5a4950/, 'lzip'],
  [/^5d0000/, 'lzma'],
  [/^1f(9d|a0)/, 'compress'],
  [/^504b0[357]0[468]/, 'zip'],
  [/^377abcaf271c/, '7z'],
  [/^526172211a07/, 'rar'],
];

/** The name of what something is compressed with, by its first block; a tar may begin with any name. */
export function compressionOf(start: Buffer): string | undefined {
  if (isTarHeader(start)) return undefined;
  const hex = start.subarray(0, 8).toString('hex');
  return magics.find(([magic]) => magic.test(hex))?.[1];
}

/** What a file is compressed with, by its first bytes. Throws `compression_unsupported`. */
export async function detectCompression(file: JoinedFile): Promise<Compression | undefined> {
  const start = Buffer.alloc(blockSize);
  const { bytesRead } = await file.read(start, 0, blockSize, 0);
  const name = compressionOf(start.subarray(0, bytesRead));
  if (name !== undefined && !isReadable(name))
    throw new AppError('compression_unsupported', { detail: `the file is compressed with ${name}` });
  return name;
}

const chunkBytes = 1024 * 1024;

/** Image layers shrink by 2 to 10; what grows by more than this is made to fill the disk. */
const maxRatio = 100;
const alwaysAllowedBytes = 1024 ** 3;

/** Passes on what `compressedBytes` may unpack to, and fails with `bundle_unsafe` beyond that. */
export function bounded(compressedBytes: number, what: string): Transform {
  const allowed = Math.max(alwaysAllowedBytes, compressedBytes * maxRatio);
  let passed = 0;
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      passed += chunk.byteLength;
      if (passed > allowed)
        done(new AppError('bundle_unsafe', { detail: `${what} unpacks to more than ${allowed} bytes` }));
      else done(null, chunk);
    },
  });
}

/**
 * zstd by its own program, since zlib's stops silently after the first of several frames, which pzstd writes. Both have
 * their memory bounded.
 */
const programs: Record<'zstd' | 'xz', string[]> = {
  zstd: ['-dcq', '--memory=128MB'],
  xz: ['-dcq', '--memlimit-decompress=256MiB'],
};

/**
 * Decompresses a file into `target`, which must not exist. Throws `bundle_format_unknown` when no tar is inside,
 * `bundle_truncated` and `bundle_corrupt` for damaged input, `bundle_unsafe` for bombs, `space_insufficient`, and
 * `compression_unsupported` for what is compressed twice, needs too much memory, or has no program here. The caller
 * removes `target` with `removeUnpacked`, also after an error.
 */
export async function unpack(
  file: JoinedFile,
  compression: Compression,
  target: string,
  signal?: AbortSignal,
): Promise<void> {
  const bound = bounded(file.size, 'the file');
  const input = file.stream(0, file.size);
  const output = (await createFile(target)).createWriteStream();
  const options = signal ? { signal } : {};
  try {
    if (compression === 'gzip')
      await pipeline(input, createGunzip({ chunkSize: chunkBytes }), bound, tarOnly(compression), output, options);
    else await throughProgram(compression, input, bound, output, options);
  } catch (error) {
    signal?.throwIfAborted();
    throw translate(error, compression, target);
  }
}

/** Another unpacking that ends may remove the empty folder between the two calls. */
async function createFile(path: string): Promise<FileHandle> {
  for (let attempt = 1; ; attempt++) {
    await mkdir(dirname(path), { recursive: true });
    try {
      return await open(path, 'wx', 0o600);
    } catch (error) {
      if (attempt === 10 || !(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
    }
  }
}

/** Removes what `unpack` wrote, and its folder when nothing else is in it. */
export async function removeUnpacked(target: string): Promise<void> {
  await rm(target, { force: true });
  await rmdir(dirname(target)).catch(() => undefined);
}

/** What is no tar need not be unpacked to the end to be refused. */
function tarOnly(compression: Compression): Transform {
  let start: Buffer | undefined = Buffer.alloc(0);
  return new Transform({
    highWaterMark: chunkBytes,
    transform(chunk: Buffer, _encoding, done) {
      if (start) {
        start = Buffer.concat([start, chunk.subarray(0, blockSize)]);
        if (start.byteLength >= blockSize) {
          const inner = compressionOf(start);
          if (inner)
            return done(
              new AppError('compression_unsupported', {
                detail: `the ${compression} file contains another one, compressed with ${inner}`,
              }),
            );
          if (!isTarHeader(start))
            return done(
              new AppError('bundle_format_unknown', { detail: `the ${compression} file contains no tar archive` }),
            );
          start = undefined;
        }
      }
      done(null, chunk);
    },
  });
}

async function throughProgram(
  name: 'zstd' | 'xz',
  input: NodeJS.ReadableStream,
  bound: Transform,
  output: NodeJS.WritableStream,
  options: { signal?: AbortSignal },
): Promise<void> {
  // It reads what somebody else has made, and needs nothing but its two pipes.
  const filter = startFilter(inSandbox([name, ...programs[name]], {}));
  const ended = filter.ended.then((code) => {
    if (code === 0) return;
    const words = filter.words();
    const reason = /unexpected end|premature/i.test(words)
      ? 'bundle_truncated'
      : /memory/i.test(words)
        ? 'compression_unsupported'
        : 'bundle_corrupt';
    throw new AppError(reason, { detail: `${name}: ${words || `ended with ${code}`}` });
  });
  // A program that gives up closes its input; its own words say why, so they are preferred to EPIPE.
  const fed = pipeline(input, filter.stdin, options).catch((error: unknown) =>
    ended.then(() => Promise.reject(error as Error)),
  );
  const unpacked = pipeline(filter.stdout, bound, tarOnly(name), output, options).catch((error: unknown) => {
    filter.kill('SIGKILL');
    throw error;
  });
  const results = await Promise.allSettled([unpacked, ended, fed]);
  // What stops the output also ends the program, whose words are about that then; without a program there is just no
  // output.
  const reasons = results.flatMap((result) => (result.status === 'rejected' ? [result.reason as unknown] : []));
  const cause =
    reasons.find(
      (reason) => !(reason instanceof Error && 'code' in reason && reason.code === 'ERR_STREAM_PREMATURE_CLOSE'),
    ) ?? reasons[0];
  if (cause !== undefined) throw cause;
}

function translate(error: unknown, compression: Compression, target: string): unknown {
  if (error instanceof AppError) return error;
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  if (code === 'ENOENT' && error instanceof Error && 'syscall' in error && String(error.syscall).startsWith('spawn'))
    return new AppError(
      'compression_unsupported',
      { detail: `the file is compressed with ${compression}, and there is no program for it; decompress it first` },
      { cause: error },
    );
  if (code === 'Z_BUF_ERROR')
    return new AppError('bundle_truncated', { detail: 'the compressed file ends too early' }, { cause: error });
  if (code.startsWith('Z_'))
    return new AppError('bundle_corrupt', { detail: `the ${compression} data is damaged` }, { cause: error });
  return diskError(error, target);
}
