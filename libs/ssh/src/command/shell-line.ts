/**
 * How a program with arguments becomes the one text that SSH carries, and how its own output is told from what else a
 * login prints (RFC 4254 section 6.5: the text is for the login shell of the user, whatever that is).
 */
import { randomBytes } from 'node:crypto';

/** What marks the output of one call. Nobody on the host knows it before. */
export const newMark = (): string => `airdock-${randomBytes(12).toString('hex')}`;
/**
 * The line before, and the one after, which goes on with the exit code: never in this form in a command line, which a
 * shell may repeat (`set -x`, csh's `set echo`).
 */
export const beginOf = (mark: string): string => `${mark}b\n`;
/** The mark that ends an output which began with `mark`. */
export const endOf = (mark: string): string => `${mark}e`;
/** So many bytes of marks may stand in an output. */
export const markBytes = 256;

// $1 is the mark, the rest a program. Both of its outputs begin and end with a mark, also where the last line has no
// end.
const markedScript = `m=$1
shift
printf '%sb\\n' "$m"
printf '%sb\\n' "$m" >&2
"$@"
set -- "$?"
printf '%se%s\\n' "$m" "$1"
printf '%se%s\\n' "$m" "$1" >&2
exit "$1"`;

/** A program whose output is marked. */
export const marked = (argv: readonly string[], mark: string): string[] => [
  'sh',
  '-c',
  markedScript,
  'sh',
  mark,
  ...argv,
];

/**
 * One line that POSIX shells, csh, tcsh and fish read alike: `sh` and words in single quotes, without what any of them
 * takes for special in there (quotes, backslashes before them, `!`, ends of lines). The rest stands in it as printf(1)
 * writes octal numbers.
 */
export function shellLine(argv: readonly string[]): string {
  const text = argv.map(quote).join(' ');
  return `sh -c 'eval "$(printf %b "$1")"' sh '${Buffer.from(text)
    .toString('latin1')
    .replaceAll(/[^ -~]|['\\!]/g, octal)}'`;
}

const octal = (character: string): string => `\\0${character.charCodeAt(0).toString(8).padStart(3, '0')}`;

/** POSIX single quotes: everything in them is literal. */
const quote = (argument: string): string =>
  /^[A-Za-z0-9_/:=.,@%+-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`;
