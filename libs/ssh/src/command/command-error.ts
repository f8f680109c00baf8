import { AppError, type ErrorCode, type ErrorDetails } from '@airdock/core/errors';

/** As the kernel says it, which programs repeat; apt; dnf. */
const diskFull = /no space left on device|disk quota exceeded|n[o']t have enough free space|more space needed on the/i;

const readOnly = /read-only file ?system/i;

/**
 * An error of a command on a host, with the command's own words in `detail`: `host_disk_full` or `host_disk_read_only`
 * where they say so, else `code`.
 */
export function commandError(code: ErrorCode, details: ErrorDetails & { detail: string }): AppError {
  if (diskFull.test(details.detail)) return new AppError('host_disk_full', details);
  return new AppError(readOnly.test(details.detail) ? 'host_disk_read_only' : code, details);
}
