/** Hosts whose package manager is in use by somebody else. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { HostSystem } from '@airdock/host/system/host-system';
import { connectSsh } from '@airdock/ssh/connection/connect';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { makeDeb } from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { out } from '../support/hosts.js';

const started = await startLab();
if (!started.lab) process.stderr.write(`package locks: skipped: ${started.reason}\n`);
// fcntl(2), as apt, dpkg and rpm lock: F_SETLK with a write lock on the whole file.
const holdLock =
  'open(F, ">>", $ARGV[0]) or die; $l = pack("s s l! l! i", 1, 0, 0, 0, 0); fcntl(F, 6, $l) or die; open(P, ">", "/run/holder"); print P $$; close P; sleep 600';

describe.skipIf(!started.lab)('a host whose package manager is in use', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let host: LabHost;
  let connection: SshConnection;

  beforeAll(async () => {
    folder = await tempDir('package-locks');
    const debs = join(folder.path, 'debs');
    await mkdir(debs);
    const slow = {
      'DEBIAN/preinst': {
        content: '#!/bin/sh\n: >/run/slow\nwhile [ -e /run/slow ]; do sleep 0.1; done\n',
        mode: 0o755,
      },
    };
    await Promise.all([makeDeb(debs, 'lab-agent'), makeDeb(debs, 'lab-slow', { files: slow })]);
    host = await lab.startHost({ name: 'locks', withDocker: false });
    await host.copyIn(debs, '/debs');
    const { address, port, privateKey, hostKeyFingerprint } = host;
    connection = await connectSsh({ address, port, username: 'admin', privateKey, hostKeyFingerprint });
  });
  afterEach(async () => {
    await out(
      host,
      'kill -9 "$(cat /run/holder 2>/dev/null)" 2>/dev/null; rm -f /run/holder /run/slow; dpkg --purge lab-agent lab-slow >/dev/null 2>&1; :',
    );
  });
  afterAll(async () => {
    await connection?.close();
    await lab.stop();
    await folder?.remove();
  });

  const system = (seconds: number, signal = new AbortController().signal) =>
    new HostSystem(connection, signal, seconds);
  const failure = (promise: Promise<unknown>) =>
    promise.then(
      () => undefined,
      (error: unknown) => error as AppError,
    );
  const install = (seconds: number, signal?: AbortSignal) =>
    system(seconds, signal).install('debian', ['/debs/lab-agent_1.0_all.deb'], { onlyAirdock: false });
  const isInstalled = async () => (await host.exec('dpkg -s lab-agent')).exitCode === 0;
  const hold = async (path: string) => {
    await out(
      host,
      `mkdir -p ${path.slice(0, path.lastIndexOf('/'))}; perl -e '${holdLock}' ${path} >/dev/null 2>&1 & while [ ! -s /run/holder ]; do sleep 0.05; done`,
    );
    return Number(await out(host, 'cat /run/holder'));
  };
  /** Somebody waits for the lock: a second of it has gone. */
  const isWaiting = () =>
    waitFor(
      async () =>
        Number(
          await out(
            host,
            `for pid in $(pgrep -x sleep); do ps -ww -o args= -p $(ps -o ppid= -p $pid); done | grep -c lock-frontend || :`,
          ),
        ) > 0,
      {
        what: 'somebody to wait',
        timeoutMs: 30_000,
      },
    );

  it.each([
    '/var/lib/dpkg/lock-frontend',
    '/var/lib/dpkg/lock',
    '/var/lib/apt/lists/lock',
    '/var/cache/apt/archives/lock',
    '/var/lib/rpm/.rpm.lock',
  ])('%s is named with its holder after a while, and waited for until then', async (file) => {
    const pid = await hold(file);
    const error = await failure(install(2));
    expect(error).toMatchObject({ code: 'host_packages_locked', details: { pid, file } });
    expect(error?.message).toMatch(new RegExp(`${file} is still held after 2 s, by process ${pid}: perl -e`));
    expect(await isInstalled()).toBe(false);
    const installing = install(60);
    await isWaiting();
    await out(host, `kill -9 ${pid}`);
    await installing;
    expect(await isInstalled()).toBe(true);
  });

  it.each([
    '/var/cache/dnf/metadata_lock.pid',
    '/var/cache/dnf/download_lock.pid',
    '/var/lib/dnf/rpmdb_lock.pid',
    '/var/run/yum.pid',
  ])('the pid in %s is one that runs, or it is not waited for', async (file) => {
    await out(
      host,
      `mkdir -p ${file.slice(0, file.lastIndexOf('/'))}; sleep 600 & echo $! >/run/holder; cp /run/holder ${file}`,
    );
    const pid = Number(await out(host, 'cat /run/holder'));
    // dnf was run: there is no list of ours yet.
    const withoutLists = { code: 'host_packages_failed', message: expect.stringContaining('Unknown repo') as string };
    const refresh = (seconds: number) => system(seconds).refreshLists('redhat');
    const locked = { code: 'host_packages_locked', details: { pid, file } };
    expect(await failure(refresh(1))).toMatchObject(locked);
    // Which versions there are says dnf, which would wait for ever by itself.
    expect(await failure(system(1).offeredVersions('redhat', 'kubeadm'))).toMatchObject(locked);
    await out(host, `kill -9 ${pid}`);
    expect(await failure(refresh(1))).toMatchObject(withoutLists);
    // As a crash leaves it.
    await out(host, `echo 4194303 >${file}`);
    expect(await failure(refresh(1))).toMatchObject(withoutLists);
    expect(await system(1).offeredVersions('redhat', 'kubeadm')).toEqual([]);
    await out(host, `rm -f ${file}`);
  });

  it('files that a crash has left are not waited for', async () => {
    await out(
      host,
      'touch /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock /var/cache/apt/archives/lock /var/lib/rpm/.rpm.lock',
    );
    await install(0);
    expect(await isInstalled()).toBe(true);
  });

  it('a real dpkg in the middle of its work is waited for', async () => {
    await out(
      host,
      'dpkg -i /debs/lab-slow_1.0_all.deb >/dev/null 2>&1 & while [ ! -e /run/slow ]; do sleep 0.05; done',
    );
    expect(await failure(install(1))).toMatchObject({
      code: 'host_packages_locked',
      message: expect.stringContaining('dpkg -i /debs/lab-slow') as string,
    });
    const installing = install(60);
    await isWaiting();
    await out(host, 'rm /run/slow');
    await installing;
    expect(await isInstalled()).toBe(true);
  });

  it('who is cancelled while he waits installs nothing afterwards', async () => {
    const pid = await hold('/var/lib/dpkg/lock-frontend');
    const stop = new AbortController();
    const installing = failure(install(60, stop.signal));
    await isWaiting();
    stop.abort(new AppError('job_cancelled'));
    expect(await installing).toMatchObject({ code: 'job_cancelled' });
    await waitFor(
      async () =>
        (await host.exec("ps ax -o args= | grep -v grep | grep 'lock-frontend' | grep -qv perl")).exitCode !== 0,
      {
        what: 'it to be gone',
        timeoutMs: 15_000,
      },
    );
    await out(host, `kill -9 ${pid}`);
    expect(await isInstalled()).toBe(false);
  });

  it('what a package manager fails with is still its own words', async () => {
    expect(await failure(system(5).install('debian', ['no-such-package'], { onlyAirdock: false }))).toMatchObject({
      code: 'host_packages_failed',
      message: expect.stringContaining('Unable to locate package no-such-package') as string,
    });
  });
});
