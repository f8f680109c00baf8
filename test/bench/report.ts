/** What the benchmarks share: their options, and the table in docs/benchmarks.md. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { repository } from '../support/du.js';

export const option = (name: string): string | undefined =>
  process.argv.includes(name) ? process.argv[process.argv.indexOf(name) + 1] : undefined;
export const rounds = Number(option('--rounds') ?? 5);

export const median = (values: number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] as number;

/** `VmRSS`, or its peak `VmHWM`, of a process, as megabytes. */
export async function memoryOf(pid: number | undefined, key: 'VmRSS' | 'VmHWM'): Promise<number> {
  const [, kibibytes] = new RegExp(`${key}:\\s+(\\d+)`).exec(await readFile(`/proc/${pid}/status`, 'utf8')) ?? [];
  return Number(kibibytes) / 1024;
}

/** Lets the peak begin anew. */
export const forgetPeak = (pid: number | undefined): Promise<void> => writeFile(`/proc/${pid}/clear_refs`, '5');

/** Prints a row, and puts it in the place of the one with its name in the document when it is of enough rounds. */
export async function publish(cells: string[]): Promise<void> {
  const line = `| ${cells.join(' | ')} |`;
  process.stdout.write(`${line}\n`);
  if (rounds < 5) return;
  const path = join(repository, 'docs/benchmarks.md');
  const lines = (await readFile(path, 'utf8')).split('\n');
  const at = lines.findIndex((old) => old.startsWith(`| ${cells[0]} |`));
  if (at < 0) throw new Error(`${path} has no row ${cells[0]}`);
  lines[at] = line;
  await writeFile(path, lines.join('\n'));
}
