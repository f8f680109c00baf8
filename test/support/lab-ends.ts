import type { Lab } from '@airdock/testing/lab/lab';
import type { TempDir } from '@airdock/testing/servers';
import { afterAll, afterEach } from 'vitest';
import type { Du } from './du.js';

/**
 * For tests on hosts of the lab: what the DU has said is printed when one failed, and all is gone afterwards. `started`
 * is asked then, and tells what `beforeAll` has come to.
 */
export function endWithLab(lab: Lab, started: () => { du: Du | undefined; folder: TempDir | undefined }): void {
  afterEach(({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(`${started().du?.output}\n`);
  });
  afterAll(async () => {
    const { du, folder } = started();
    await du?.stop();
    await lab.stop();
    await folder?.remove();
  });
}
