/**
 * Hosts whose configuration lies on a disk that has no byte or no inode left, or is mounted read-only: what was brought
 * is checked, and taken away again.
 */

import { retryJob } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import {
  checkHost,
  configureHost,
  dockerNames,
  localNames,
  out,
  registerHost,
  stateOf,
  wrongPulls,
} from '../support/hosts.js';
import { success } from '../support/jobs.js';

const started = await startLab();
if (!started.lab) process.stderr.write(`full disks of hosts: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('a host', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let bundleId: string;
  beforeAll(async () => {
    folder = await tempDir('host-full-disk');
    du = await Du.start({ folder: folder.path });
    client = await du.client();
    bundleId = await carryIn(client, du, { images: ['k8s.gcr.io/pause:3.2'], layerBytes: 300_000 });
    await push(client, bundleId);
  });
  afterEach(({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  });
  afterAll(async () => {
    await du?.stop();
    await lab.stop();
    await folder?.remove();
  });

  /** /etc on a small disk of its own; files that others keep mounted there stay where they are. */
  const ownDisk = (host: LabHost) =>
    out(
      host,
      'mkdir /disk; mount -t tmpfs -o size=16m,nr_inodes=6000 tmpfs /disk; cp -a /etc /disk/etc; mount --rbind /disk/etc /etc',
    );
  const fills: Record<string, { fill: string; mend: string; code?: string }> = {
    'has no byte left': { fill: 'cat /dev/zero >/disk/full; true', mend: 'rm /disk/full' },
    'has no inode left': {
      fill: 'mkdir /disk/full; i=0; while true >/disk/full/$i; do i=$((i+1)); done 2>/dev/null; true',
      mend: 'rm -r /disk/full',
    },
    'is mounted read-only': {
      fill: 'mount -o remount,ro /disk',
      mend: 'mount -o remount,rw /disk',
      code: 'host_disk_read_only',
    },
  };
  /**
   * Where nothing was, Airdock's file goes; what was there comes back by its name; what somebody has changed since is
   * written anew, which takes room.
   */
  const files: Record<string, { before: string; since: string; needsRoom: boolean }> = {
    'no daemon.json': { before: '', since: '', needsRoom: false },
    'a daemon.json': { before: '{"debug": false}', since: '', needsRoom: false },
    'a daemon.json that was changed since': {
      before: '{"debug": false}',
      since: 'sed -i "s/false/true/" /etc/docker/daemon.json',
      needsRoom: true,
    },
  };

  it.each(Object.keys(fills).flatMap((disk) => Object.keys(files).map((file) => [disk, file])))(
    'whose disk %s, with %s, is checked, pulls, and is freed of Airdock as far as the disk allows',
    async (disk = '', file = '') => {
      const { fill, mend, code } = fills[disk] as (typeof fills)[string];
      const { before, since, needsRoom } = files[file] as (typeof files)[string];
      const host = await lab.startHost({ name: `${disk} ${file}`.replaceAll(/[^a-z]+/g, '-').slice(0, 60) });
      await ownDisk(host);
      if (before) await out(host, `mkdir -p /etc/docker; echo '${before}' >/etc/docker/daemon.json`);
      const untouched = await stateOf(host);
      const id = await registerHost(client, host);
      expect((await configureHost(client, id, { bundleIds: [bundleId] })).job).toMatchObject({ state: 'succeeded' });
      if (since) await out(host, since);
      await out(host, fill);

      const { result } = await checkHost(client, id);
      expect(result?.checks.find(({ name }) => name === 'disk writes')).toMatchObject({
        status: 'warning',
        seen: expect.stringMatching(/^\/etc /) as string,
      });
      expect(
        await wrongPulls(client, du.registryPort, id, localNames(du.registryPort, ['k8s.gcr.io/pause:3.2'])),
      ).toEqual([]);
      const { job } = await configureHost(client, id, { action: 'unconfigure', bundleIds: [] });
      const expected = code ?? (needsRoom ? 'host_disk_full' : undefined);
      expect(job).toMatchObject(
        expected ? { state: 'failed', error: { code: expected } } : { state: 'succeeded', error: null },
      );

      await out(host, mend);
      if (expected) await success(client, (await retryJob({ client, path: { id: job.id }, throwOnError: true })).data);
      if (since)
        expect(await out(host, 'cat /etc/docker/daemon.json; ls -A /etc/docker | grep airdock || true')).toBe(
          '{"debug": true}',
        );
      else expect(await stateOf(host)).toBe(untouched);
      expect(await dockerNames(host)).toEqual([]);
    },
  );
});
