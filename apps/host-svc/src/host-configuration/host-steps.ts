import { fileDiff } from '@airdock/core/host/host-file';
import { type HostFile, HostFiles, type WriteOptions } from '@airdock/host/system/host-files';
import { HostSystem, type SystemFacts } from '@airdock/host/system/host-system';
import type { Config } from '@airdock/platform/config';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import type { Brought, Change, ConfigurationOptions } from '../host/host.schema.js';
import type { HostConfigurationResult, Step } from './host-configuration.schema.js';

export type Outcome = Omit<Step, 'name' | 'durationMs'>;

export const skipped = (detail: string): Outcome => ({ status: 'skipped', detail, changes: [] });

/** Adds steps to a result as they end: what was done is known also when a later one throws. */
export function stepLog(result: HostConfigurationResult): (name: Step['name'], outcome: Outcome) => void {
  let since = performance.now();
  return (name, outcome) => {
    const at = performance.now();
    result.steps.push({ name, ...outcome, durationMs: Math.round(at - since) });
    since = at;
  };
}

/** What the steps on one host share. */
export class HostSteps {
  readonly system: HostSystem;

  constructor(
    readonly config: Config,
    readonly connection: SshConnection,
    readonly facts: SystemFacts,
    readonly options: ConfigurationOptions,
    readonly dryRun: boolean,
    /** The host has a way to the DU: its 127.0.0.1 leads to the registry and the packages. */
    readonly hasTunnel: boolean,
    readonly signal: AbortSignal,
    /** Notes what is about to be brought, for the one who takes it away again. */
    readonly remember: (brought: Partial<Brought>) => Promise<void> = async () => undefined,
    readonly files = new HostFiles(connection, signal),
  ) {
    this.system = new HostSystem(connection, signal);
  }

  /**
   * Brings a file to what it should say, unless this is a dry run. Returns the change, undefined when the file says it
   * already.
   */
  async bring(before: HostFile, text: string, options: WriteOptions): Promise<Change | undefined> {
    if (before.text === text) return undefined;
    if (!this.dryRun) await this.files.write(before, text, options);
    return fileChange(before, text);
  }

  /** Takes Airdock out of a file, unless this is a dry run. Returns the change, undefined when it is not in it. */
  async takeBack(current: HostFile, text: string | null): Promise<Change | undefined> {
    if (current.text === text) return undefined;
    if (!this.dryRun) await this.files.takeBack(current, text);
    return {
      kind: 'file',
      target: current.path,
      action: text === null ? 'remove' : 'change',
      diff: fileDiff(current.path, current.text, text),
    };
  }

  outcome(changes: Change[], detail: string): Outcome {
    const status = changes.length === 0 ? 'unchanged' : this.dryRun ? 'planned' : 'done';
    return { status, detail, changes };
  }
}

export const fileChange = (before: HostFile, text: string): Change => ({
  kind: 'file',
  target: before.path,
  action: before.text === null ? 'create' : 'change',
  diff: fileDiff(before.path, before.text, text),
});

export const change = (kind: Change['kind'], action: Change['action'], target: string): Change => ({
  kind,
  target,
  action,
  diff: null,
});
