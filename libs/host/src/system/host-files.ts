import { createHash } from 'node:crypto';
import { AppError } from '@airdock/core/errors';
import { isOwn } from '@airdock/core/host/host-file';
import { commandError } from '@airdock/ssh/command/command-error';
import type { SshConnection } from '@airdock/ssh/connection/connection';

/** A file of a host, as it was read. */
export interface HostFile {
  path: string;
  /** Null where there is no file. */
  text: string | null;
  /** It was changed by a run that did not come to making it known to its program. */
  isPending: boolean;
  /** What was there before Airdock is kept beside it. */
  isKept: boolean;
}

/** How a file is written, and how it is taken back. */
export interface WriteOptions {
  /** The file can be marked as Airdock's own by its first line, which JSON cannot. */
  hasHeader: boolean;
  /** Stays `isPending` until `settle`. */
  pending?: boolean;
}

const maxBytes = 512 * 1024;

const resolve = '[ ! -L "$path" ] || path=$(readlink -f "$path")';

// Of a file that is gone: the folders that were made for it and have nothing else in them.
const removeFolders = `
folder=$(dirname "$path")
while [ -e "$folder/.airdock-created" ] && [ "$(ls -A "$folder")" = .airdock-created ]; do
  rm "$folder/.airdock-created"
  rmdir "$folder"
  folder=$(dirname "$folder")
done`;

// A line for each path.
const readScript = `
limit=$1
shift
for path; do
  ${resolve}
  [ -e "$path.airdock-pending" ] && printf 'pending ' || printf 'settled '
  [ -e "$path.airdock-before" ] && printf 'kept ' || printf 'not '
  if [ ! -e "$path" ]; then echo absent
  elif [ -f "$path" ] && [ "$(wc -c <"$path")" -le "$limit" ]; then printf 'present '; base64 <"$path" | tr -d '\\n'; echo
  else echo unusable; fi
done`;

// The new text comes on standard input. A copy of the old file gives the new one its mode and owner; the name changes
// over in one step.
const writeScript = `
set -e
path=$1 keep=$2 created=$3 pending=$4 expected=$5 content=$6
${resolve}
folder=$(dirname "$path")
while [ ! -d "$folder" ]; do set -- "$@" "$folder"; folder=$(dirname "$folder"); done
shift 6
mkdir -p "$(dirname "$path")"
for folder; do : >"$folder/.airdock-created"; done
new=$path.airdock-new.$$
trap 'rm -f "$new"' EXIT
# What a host that lost its power in here has left.
rm -f "$path".airdock-new.*
if [ -e "$path" ]; then cp -p "$path" "$new"; else : >"$new"; chmod 644 "$new"; fi
cat >"$new"
# A connection that breaks looks like the end of the text.
[ "$(sha256sum <"$new" | cut -d' ' -f1)" = "$content" ] || { echo "the text did not arrive whole" >&2; exit 74; }
sync "$new" 2>/dev/null || sync
if [ -e "$path" ]; then seen=$(sha256sum <"$path" | cut -d' ' -f1); else seen=absent; fi
[ "$seen" = "$expected" ] || { echo "$path was changed by someone else meanwhile" >&2; exit 75; }
if [ "$keep" = yes ] && [ ! -e "$path.airdock-before" ] && [ ! -e "$path.airdock-created" ]; then cp -p "$path" "$path.airdock-before"; fi
if [ "$created" = yes ]; then : >"$path.airdock-created"; fi
if [ "$pending" = yes ]; then : >"$path.airdock-pending"; fi
mv -f "$new" "$path"
command -v restorecon >/dev/null && restorecon "$path" || :`;

const restoreScript = `
set -e
path=$1
${resolve}
if [ "$2" = pending ]; then
  if [ -e "$path.airdock-before" ]; then mv -f "$path.airdock-before" "$path"; else rm -f "$path" "$path.airdock-created"; fi
elif [ "$2" = absent ]; then
  rm -f "$path" "$path.airdock-created"
elif [ "$3" = yes ] && [ -e "$path.airdock-before" ]; then
  mv -f "$path.airdock-before" "$path"
else
  cp -p "$path" "$path.airdock-new.$$"
  cat >"$path.airdock-new.$$"
  [ "$(sha256sum <"$path.airdock-new.$$" | cut -d' ' -f1)" = "$4" ]
  mv -f "$path.airdock-new.$$" "$path"
fi
rm -f "$path.airdock-pending"
${removeFolders}`;

// What comes on standard input takes the place of the file, unless what was there before Airdock does, or nothing.
const revertScript = `
set -e
path=$1 expected=$2 state=$3 content=$4
${resolve}
seen=$(sha256sum <"$path" | cut -d' ' -f1)
[ "$seen" = "$expected" ] || { echo "$1 was changed by someone else meanwhile" >&2; exit 75; }
if [ "$state" = absent ]; then
  rm -f "$path"
elif [ -e "$path.airdock-before" ] && [ "$(sha256sum <"$path.airdock-before" | cut -d' ' -f1)" = "$content" ]; then mv -f "$path.airdock-before" "$path"
else
  new=$path.airdock-new.$$
  trap 'rm -f "$new"' EXIT
  cp -p "$path" "$new"
  cat >"$new"
  [ "$(sha256sum <"$new" | cut -d' ' -f1)" = "$content" ] || { echo "the text did not arrive whole" >&2; exit 74; }
  mv -f "$new" "$path"
fi
rm -f "$path.airdock-before" "$path.airdock-created" "$path.airdock-pending"
${removeFolders}`;

/**
 * Configuration files of a host. Who takes Airdock off a host later needs what was there before: a file that is not
 * Airdock's own is kept as `FILE.airdock-before` when it is changed for the first time, and an empty
 * `FILE.airdock-created` stands beside a file that was not there and cannot say so itself.
 */
export class HostFiles {
  private readonly ahead = new Map<string, Promise<string>>();

  constructor(
    private readonly connection: SshConnection,
    private readonly signal: AbortSignal,
  ) {}

  /**
   * Begins to read files, with one command, that are wanted soon: the next `read` of each answers what they say now.
   * Who changes a file in between is noticed by `write`.
   */
  readAhead(paths: readonly string[]): void {
    const lines = this.lines(paths);
    for (const [index, path] of paths.entries()) {
      const line = lines.then((all) => all[index] ?? '');
      // Whoever reads the file gets to know.
      line.catch(() => undefined);
      this.ahead.set(path, line);
    }
  }

  /** Throws `host_file_refused` for a folder, a file of more than 512 KiB, and one that is not UTF-8. */
  async read(path: string): Promise<HostFile> {
    const ahead = this.ahead.get(path);
    this.ahead.delete(path);
    return ahead ? parseLine(path, await ahead) : ((await this.readAll([path]))[0] as HostFile);
  }

  /** As `read`, with one command for several small files. */
  async readAll(paths: readonly string[]): Promise<HostFile[]> {
    const lines = await this.lines(paths);
    return paths.map((path, index) => parseLine(path, lines[index] ?? ''));
  }

  private async lines(paths: readonly string[]): Promise<string[]> {
    const output = await this.connection.run(['sh', '-c', readScript, 'sh', String(maxBytes), ...paths], {
      sudo: true,
      signal: this.signal,
    });
    return output.split('\n');
  }

  /**
   * Replaces a file in one step, keeping its mode and owner. Throws `host_file_refused` when it is no longer as
   * `before` says, and then changes nothing.
   */
  async write(before: HostFile, text: string, { hasHeader, pending = false }: WriteOptions): Promise<void> {
    const flags = [before.text !== null && !isOwn(before.text), before.text === null && !hasHeader, pending].map(
      (flag) => (flag ? 'yes' : 'no'),
    );
    const digests = [before.text === null ? 'absent' : sha256Of(before.text), sha256Of(text)];
    const { exitCode, stderr } = await this.connection.exec(
      ['sh', '-c', writeScript, 'sh', before.path, ...flags, ...digests],
      {
        sudo: true,
        stdin: text,
        signal: this.signal,
      },
    );
    if (exitCode === 75)
      throw new AppError('host_file_refused', { detail: stderr.trim().slice(-300), file: before.path });
    if (exitCode !== 0)
      throw commandError('host_command_failed', {
        detail: `writing ${before.path}: ${stderr.trim().slice(-300)}`,
        exitCode,
      });
  }

  /**
   * Takes back a `write`, as if it had not been; `before` is what was read before it. Of a pending file what was there
   * before Airdock comes back.
   */
  async restore(before: HostFile): Promise<void> {
    const state = before.isPending ? 'pending' : before.text === null ? 'absent' : 'present';
    const text = before.text ?? '';
    await this.connection.run(
      ['sh', '-c', restoreScript, 'sh', before.path, state, before.isKept ? 'no' : 'yes', sha256Of(text)],
      {
        sudo: true,
        stdin: text,
        signal: this.signal,
      },
    );
  }

  /** What was there before Airdock changed the file; null where there was none, or nothing is kept. */
  async before(path: string): Promise<string | null> {
    return (await this.read(`${path}.airdock-before`)).text;
  }

  /**
   * Takes Airdock out of a file: `text` takes its place, with mode and owner of what was there before when it is that,
   * and null removes the file, with the folders that were made for it and are empty then. Throws `host_file_refused`
   * when the file is no longer as it was read.
   */
  async revert({ path, text: current }: HostFile, text: string | null): Promise<void> {
    const arguments_ = [path, sha256Of(current ?? ''), text === null ? 'absent' : 'present', sha256Of(text ?? '')];
    const { exitCode, stderr } = await this.connection.exec(['sh', '-c', revertScript, 'sh', ...arguments_], {
      sudo: true,
      stdin: text ?? '',
      signal: this.signal,
    });
    if (exitCode === 75) throw new AppError('host_file_refused', { detail: stderr.trim().slice(-300), file: path });
    if (exitCode !== 0)
      throw commandError('host_command_failed', {
        detail: `reverting ${path}: ${stderr.trim().slice(-300)}`,
        exitCode,
      });
  }

  /** Says that the program knows the file now. */
  async settle(path: string): Promise<void> {
    await this.connection.run(['sh', '-c', `path=$1; ${resolve}; rm -f "$path.airdock-pending"`, 'sh', path], {
      sudo: true,
      signal: this.signal,
    });
  }
}

/** A line of `readScript`. */
function parseLine(path: string, line: string): HostFile {
  const [pending, kept, state, content = ''] = line.split(' ');
  const refused = (why: string) => new AppError('host_file_refused', { detail: `${path} ${why}`, file: path });
  if (state !== 'absent' && state !== 'present') throw refused(`is no file of at most ${maxBytes} bytes`);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Buffer.from(content, 'base64'));
  } catch {
    throw refused('is not UTF-8');
  }
  return { path, text: state === 'present' ? text : null, isPending: pending === 'pending', isKept: kept === 'kept' };
}

const sha256Of = (text: string): string => createHash('sha256').update(text).digest('hex');
