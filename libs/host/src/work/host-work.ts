import { fileDiff } from '@airdock/core/host/host-file';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { type HostFile, HostFiles, type WriteOptions } from '../system/host-files.js';
import { HostSystem } from '../system/host-system.js';

/** What on a host can be changed. */
export const hostChangeKinds = ['file', 'package', 'service', 'image', 'tunnel', 'command'] as const;
/** What can be done to it. */
export const hostChangeActions = [
  'create',
  'change',
  'install',
  'refresh',
  'start',
  'reload',
  'restart',
  'load',
  'pull',
  'open',
  'remove',
  'close',
  'run',
] as const;

/** One thing on a host that a step has changed, or would change in a dry run. */
export interface HostChange {
  kind: (typeof hostChangeKinds)[number];
  /** Path, package, service, image or address on the host; or the words of a command. */
  target: string;
  action: (typeof hostChangeActions)[number];
  /** Of a file: a unified diff, with credentials masked. */
  diff: string | null;
}

/** A change of something that has no diff. */
export const hostChange = (kind: HostChange['kind'], action: HostChange['action'], target: string): HostChange => ({
  kind,
  target,
  action,
  diff: null,
});

/** What becomes of a file; null stands for "not there". */
export const fileChange = (path: string, before: string | null, after: string | null): HostChange => ({
  kind: 'file',
  target: path,
  action: before === null ? 'create' : after === null ? 'remove' : 'change',
  diff: fileDiff(path, before, after),
});

/** What became of a step: `planned` is what a dry run would do. Work with steps that can be skipped adds a status. */
export type StepStatus = 'done' | 'unchanged' | 'planned';

/** How a step ended. */
export interface StepOutcome<Status extends string = StepStatus> {
  status: Status;
  detail: string;
  changes: HostChange[];
}

/** The outcome of a step that was not needed, or not wanted. */
export const skipped = (detail: string): StepOutcome<'skipped'> => ({ status: 'skipped', detail, changes: [] });

/** A step that has ended. */
export interface HostStep<Name extends string, Status extends string = StepStatus> extends StepOutcome<Status> {
  name: Name;
  durationMs: number;
}

/** What Airdock has added to a host: names of packages, with their dependencies, and full references of images. */
export interface HostAdditions {
  packages: string[];
  images: string[];
}

/** What a `HostWork` is made of. */
export interface HostWorkOptions<Name extends string, OtherStatus extends string = never> {
  connection: SshConnection;
  signal: AbortSignal;
  /** Nothing on the host is changed; the steps say what would be. */
  dryRun: boolean;
  /** Called at the end of each step, so that the steps before a failure are known. */
  onStep: (step: HostStep<Name, StepStatus | OtherStatus>) => void;
  /** Called with each thing that a person should know. */
  onWarning: (warning: string) => void;
  /** Stores what is about to be added to the host, so that it can be removed again. Default: nothing is stored. */
  remember?: (additions: Partial<HostAdditions>) => Promise<void>;
  /** When the first step began, by `performance.now()`. Default: now. */
  startedAt?: number;
  /** Files of the host, some of which may have been read ahead. Default: none have. */
  files?: HostFiles;
}

/**
 * Work on one host: named steps, each of which looks first, changes only what is not as it should be, and changes
 * nothing in a dry run.
 *
 * @example
 * const file = await work.files.read(path);
 * const change = await work.write(file, text, { hasHeader: true });
 * work.recordChanges('runtime', change ? [change] : [], path);
 */
export class HostWork<Name extends string, OtherStatus extends string = never> {
  readonly connection: SshConnection;
  readonly signal: AbortSignal;
  readonly dryRun: boolean;
  readonly system: HostSystem;
  readonly files: HostFiles;
  private readonly options: HostWorkOptions<Name, OtherStatus>;
  private stepStartedAt: number;

  constructor(options: HostWorkOptions<Name, OtherStatus>) {
    const { connection, signal, dryRun, files, startedAt } = options;
    this.options = options;
    this.connection = connection;
    this.signal = signal;
    this.dryRun = dryRun;
    this.system = new HostSystem(connection, signal);
    this.files = files ?? new HostFiles(connection, signal);
    this.stepStartedAt = startedAt ?? performance.now();
  }

  /** Reports the end of a step. Its duration is the time since the step before it. */
  record(name: Name, outcome: StepOutcome<StepStatus | OtherStatus>): void {
    const endedAt = performance.now();
    this.options.onStep({ name, ...outcome, durationMs: Math.round(endedAt - this.stepStartedAt) });
    this.stepStartedAt = endedAt;
  }

  /** Reports the end of a step that has made these changes. */
  recordChanges(name: Name, changes: HostChange[], detail: string): void {
    this.record(name, this.outcome(changes, detail));
  }

  /** Reports what a person should know. */
  warn(warning: string): void {
    this.options.onWarning(warning);
  }

  /** Stores what is about to be added to the host. */
  async remember(additions: Partial<HostAdditions>): Promise<void> {
    await this.options.remember?.(additions);
  }

  /** The outcome of a step with these changes: `unchanged` without any, `planned` in a dry run, else `done`. */
  outcome(changes: HostChange[], detail: string): StepOutcome {
    return { status: changes.length === 0 ? 'unchanged' : this.dryRun ? 'planned' : 'done', detail, changes };
  }

  /**
   * Writes a file, unless it says that already or this is a dry run. Returns the change; undefined when there is none.
   * Throws as `HostFiles.write`.
   */
  async write(before: HostFile, text: string, options: WriteOptions): Promise<HostChange | undefined> {
    if (before.text === text) return undefined;
    if (!this.dryRun) await this.files.write(before, text, options);
    return fileChange(before.path, before.text, text);
  }

  /**
   * Reverts what Airdock has made of a file to `text`, or removes it where that is null, unless this is a dry run.
   * Returns the change; undefined when there is none. Throws as `HostFiles.revert`.
   */
  async revert(current: HostFile, text: string | null): Promise<HostChange | undefined> {
    if (current.text === text) return undefined;
    if (!this.dryRun) await this.files.revert(current, text);
    return fileChange(current.path, current.text, text);
  }
}
