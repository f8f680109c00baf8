import { type ChildProcessByStdio, spawn } from 'node:child_process';
import type { Readable } from 'node:stream';

/** Names of built files lead to their source. */
const hooks = `import { registerHooks } from 'node:module';
registerHooks({
  resolve: (name, context, next) => next(/^[.]{1,2}[/].*[.]js$/.test(name) && /[.]ts$/.test(context.parentURL ?? '') ? name.replace(/js$/, 'ts') : name, context),
});`;

/**
 * A process of its own that runs a module of TypeScript source, given as text, without a build: for tests that kill it.
 * It imports by file URL. The caller waits for it or kills it.
 */
export function spawnSource(module: string): ChildProcessByStdio<null, Readable, null> {
  const flags = ['--experimental-transform-types', '--no-warnings', '--conditions=airdock-source'];
  const code = [
    '--import',
    `data:text/javascript,${encodeURIComponent(hooks)}`,
    '--input-type=module',
    '--eval',
    module,
  ];
  return spawn(process.execPath, [...flags, ...code], { stdio: ['ignore', 'pipe', 'inherit'] });
}
