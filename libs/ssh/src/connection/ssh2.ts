import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);

/**
 * The library, loaded when it is first used: with what belongs to it it takes 4 MB, and a DU without hosts needs none
 * of it.
 */
export const ssh2 = (): typeof import('ssh2') => require('ssh2') as typeof import('ssh2');
