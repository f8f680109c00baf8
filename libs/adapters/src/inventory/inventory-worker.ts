/** Parses one inventory in a thread of its own, for `read-inventory.ts`. */
import { parentPort, workerData } from 'node:worker_threads';
import { toProblem } from '@airdock/core/errors';
import { type InventoryFormat, parseInventory } from './inventory.js';

const { format, content } = workerData as { format: InventoryFormat; content: string };
try {
  parentPort?.postMessage({ hosts: parseInventory(format, content) });
} catch (error) {
  parentPort?.postMessage({ problem: toProblem(error) });
}
