import { AppError, type ErrorCode, type ErrorDetails } from '@airdock/core/errors';

/** As the kernel says it, which programs repeat; apt; dnf. */
const diskFull = /no space left on device|disk quota exceeded|n[o']t have enough free space|more space needed on the/i;

/** An error of a command on a host, with the command's own words in `detail`: `host_disk_full` where they say so, else `code`. */
export function commandError(code: ErrorCode, details: ErrorDetails & { detail: string }): AppError {
  return new AppError(diskFull.test(details.detail) ? 'host_disk_full' : code, details);
}
