import { AppError } from '@airdock/core/errors';
import { pollUntil } from '@airdock/core/poll-until';
import type { HostFile, HostFiles } from '../system/host-files.js';
import type { HostSystem } from '../system/host-system.js';
import type { ContainerdHost } from './containerd-host.js';
import type { RuntimeName } from './runtime-host.js';

const startMs = 30_000;
const lookPauseMs = 300;

/** How a runtime comes to know its main file. */
export interface Activation {
  service: RuntimeName;
  /** See `WriteOptions`. */
  hasHeader: boolean;
  /** Makes the file known without a restart; false where that is not enough. */
  takeOver: () => Promise<boolean>;
  isUp: () => Promise<boolean>;
}

/** containerd reads its file at its start only. */
export async function containerdActivation(containerd: ContainerdHost): Promise<Activation> {
  const cri = await containerd.criState();
  const isUp = async () => {
    const now = await containerd.criState();
    // A plugin that failed before is not ours to judge.
    return now !== undefined && (now !== 'error' || cri === 'error');
  };
  return { service: 'containerd', hasHeader: true, takeOver: async () => false, isUp };
}

/**
 * Writes the main file of a runtime and makes it known: by `takeOver` where that is enough, else by a restart. When the
 * runtime is not up afterwards the old file is put back, and the runtime started again with it; throws
 * `host_runtime_failed`, which says how either went.
 */
export async function activateFile(
  files: HostFiles,
  system: HostSystem,
  before: HostFile,
  text: string,
  activation: Activation,
): Promise<'reload' | 'restart'> {
  const { service, hasHeader, takeOver, isUp } = activation;
  if (text !== before.text) await files.write(before, text, { hasHeader, pending: true });
  if (await takeOver()) {
    await files.settle(before.path);
    return 'reload';
  }
  const restart = async (): Promise<string | undefined> => {
    const complaint = await system.service('restart', service);
    if (complaint !== undefined) return complaint;
    return (await pollUntil({ everyMs: lookPauseMs, timeoutMs: startMs }, isUp))
      ? undefined
      : `${service} gives no answer`;
  };
  const complaint = await restart();
  if (complaint === undefined) {
    await files.settle(before.path);
    return 'restart';
  }
  await files.restore(before);
  const second = await restart();
  const back =
    second === undefined ? `${service} runs with it again` : `${service} does not start with it either (${second})`;
  throw new AppError('host_runtime_failed', {
    detail: `${service} did not start with the new ${before.path} (${complaint}); the old file is back, and ${back}`,
    file: before.path,
    isRunning: second === undefined,
  });
}
