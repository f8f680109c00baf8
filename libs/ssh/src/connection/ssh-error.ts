import type { ErrorCode } from '@airdock/core/errors';
import { cleanLine } from '@airdock/core/host/host-text';

/** What ssh2 throws. `reason` is there when a server has refused something. */
export type SshError = Error & { level?: string | undefined; code?: string | undefined; reason?: unknown };

/** An error of ssh2, whose message may be the host's own words. */
export function cleanError(error: unknown): SshError {
  const { message, level, code, reason } = error as SshError;
  return Object.assign(new Error(cleanLine(message, 500)), {
    level,
    code,
    ...(reason === undefined ? {} : { reason }),
  });
}

const brokenRules: readonly string[] = [
  'host_protocol_error',
  'host_flood',
  'host_buffer_exceeded',
] satisfies ErrorCode[];
/** The code of what the host did against the rules; ssh2 is patched to say it. */
export const brokenRule = ({ code }: SshError): ErrorCode | undefined =>
  code !== undefined && brokenRules.includes(code) ? (code as ErrorCode) : undefined;
