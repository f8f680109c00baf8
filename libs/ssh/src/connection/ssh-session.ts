import { AppError } from '@airdock/core/errors';
import { cleanLine } from '@airdock/core/host/host-text';
import type { ClientChannel } from 'ssh2';
import type { SshError } from './ssh-error.js';

/** What a shell prints behind a program is heard for so long, where something it has started keeps the channel open. */
const afterMs = 500;

/** A session, and its end. */
export interface OpenSession {
  channel: ClientChannel;
  /** The exit code of the login shell; undefined where the host has said none. */
  closed: Promise<number | undefined>;
  /** The host has closed it. */
  freed: Promise<void>;
  /**
   * The program has ended: when the shell has too, nothing else is waited for, such as what it has left running in the
   * background.
   */
  hasSaidAll(): void;
}

/** Listens at once: its end may be in the same packet as its beginning. */
export function followSession(channel: ClientChannel): OpenSession {
  let code: number | undefined;
  let hasExited = false;
  let isSaid = false;
  let end = () => undefined as unknown;
  let timer: NodeJS.Timeout | undefined;
  const closed = new Promise<number | undefined>((resolve) => {
    end = () => resolve(code);
  });
  const freed = new Promise<void>((resolve) => {
    channel.once('close', () => {
      clearTimeout(timer);
      end();
      resolve();
    });
  });
  const endSoon = () => {
    if (!hasExited || !isSaid) return;
    timer ??= setTimeout(() => {
      end();
      channel.close();
    }, afterMs);
  };
  channel.once('exit', (value: number | null) => {
    code = value ?? 255;
    hasExited = true;
    endSoon();
  });
  channel.on('error', () => undefined).stderr.on('error', () => undefined);
  const hasSaidAll = () => {
    isSaid = true;
    endSoon();
  };
  return { channel, closed, freed, hasSaidAll };
}

/** `host_shell_unusable`: the login shell has run nothing of ours, and this is all that was seen of it. */
export function shellUnusable(where: string, username: string, exitCode: number | undefined, said: string): AppError {
  const words = cleanLine(said);
  const seen = [
    exitCode === undefined ? 'it waits for something' : `it ended with ${exitCode}`,
    words ? `it said: ${words}` : 'it said nothing',
  ];
  return new AppError('host_shell_unusable', {
    detail: `${where}: the login of ${username} runs no command; ${seen.join(', and ')}`,
  });
}

/**
 * What ssh2 says of a command that was not begun: a refused session with its reason, or that the host runs no commands
 * in one.
 */
export const refusedExec = (error: Error, where: string, username: string): Error =>
  (error as SshError).reason === undefined && /unable to exec/i.test(error.message)
    ? shellUnusable(where, username, 1, error.message)
    : error;

/** `host_sudo_failed`, with what sudo said. */
export function sudoRefused(where: string, username: string, hasPassword: boolean, words: string): AppError {
  const reason = /must have a tty/.test(words)
    ? 'requiretty is set in the sudoers of the host'
    : hasPassword
      ? `sudo did not let ${username} in with the sudoPassword of the credential`
      : `sudo did not let ${username} in, and the credential has no sudoPassword`;
  return new AppError('host_sudo_failed', { detail: `${where}: ${reason}: ${words}` });
}
