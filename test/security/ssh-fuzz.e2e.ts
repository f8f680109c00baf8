/** The short form of the fuzzer; ssh-fuzz.ts says how to let it run for longer. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';
import { repository } from '../support/du.js';

it('a few hundred random messages of a host neither stop nor end what connects to it', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, [
    join(repository, 'test/dist/security/ssh-fuzz.js'),
    '--logins',
    '30',
    '--minutes',
    '2',
  ]);
  process.stdout.write(stdout);
  expect(stdout).toMatch(/^seed \d+: 3\d logins, \d{3,} messages in .* nothing found\n$/);
});
