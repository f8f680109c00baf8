import { Worker } from 'node:worker_threads';
import { fromProblem, type Problem } from '@airdock/core/errors';
import { type InventoryFormat, type InventoryHost, type InventoryOptions, parseInventory } from './inventory.js';
import { invalid } from './inventory-host.js';

/** Parsing a megabyte of YAML takes seconds, and of some YAML many. */
const timeoutMs = 60_000;
const maxHeapMb = 512;

/**
 * `parseInventory` beside the thread that answers the API, with a bound on time and memory: what YAML costs cannot be
 * told from its length. Throws `inventory_invalid`, also for what takes too much of either.
 */
export async function readInventory(
  format: InventoryFormat,
  content: string,
  { warn, ...options }: InventoryOptions = {},
): Promise<InventoryHost[]> {
  // Specs run the source, which a thread cannot load.
  if (import.meta.url.endsWith('.ts')) return parseInventory(format, content, { ...options, warn });
  const worker = new Worker(new URL('./inventory-worker.js', import.meta.url), {
    workerData: { format, content, options },
    resourceLimits: { maxOldGenerationSizeMb: maxHeapMb },
  });
  const timer = setTimeout(() => void worker.terminate(), timeoutMs);
  try {
    return await new Promise((resolve, reject) => {
      worker.once(
        'message',
        ({ hosts, warnings = [], problem }: { hosts?: InventoryHost[]; warnings?: string[]; problem?: Problem }) => {
          for (const text of warnings) warn?.(text);
          if (hosts) resolve(hosts);
          else reject(problem ? fromProblem(problem) : invalid(undefined, 'it cannot be read'));
        },
      );
      // Its end without an answer: out of memory, or out of time.
      worker.once('error', () => reject(invalid(undefined, 'it takes too much memory to read')));
      worker.once('exit', () => reject(invalid(undefined, `it takes longer than ${timeoutMs / 1000} s to read`)));
    });
  } finally {
    clearTimeout(timer);
    await worker.terminate();
  }
}
