/** Parses one inventory in a thread of its own, for `read-inventory.ts`. */
import { parentPort, workerData } from 'node:worker_threads';
import { toProblem } from '@airdock/core/errors';
import { type InventoryFormat, type InventoryOptions, parseInventory } from './inventory.js';

const { format, content, options } = workerData as {
  format: InventoryFormat;
  content: string;
  options: InventoryOptions;
};
try {
  const warnings: string[] = [];
  const hosts = parseInventory(format, content, { ...options, warn: (text) => warnings.push(text) });
  parentPort?.postMessage({ hosts, warnings });
} catch (error) {
  parentPort?.postMessage({ problem: toProblem(error) });
}
