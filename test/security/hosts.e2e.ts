/** Hostile hosts against a DU: each may do damage to itself only. */

import { join } from 'node:path';
import {
  createHost,
  createHostCheck,
  createHostConfiguration,
  createSshCredential,
  getHost,
  getHostCheck,
  getJob,
  liftHostQuarantine,
  listHostConfigurations,
  retryJob,
} from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import {
  type HostileSshServer,
  messageOf,
  sshMessage,
  startHostileSshServer,
} from '@airdock/testing/hostile-ssh-server';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { printed } from '@airdock/testing/ssh-command';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Du } from '../support/du.js';
import {
  findHostWorker,
  freezeOnDataFrom,
  hostWorkerOf,
  inspected,
  nextHostWorker,
  stopWhileIdle,
} from '../support/host-worker.js';
import { checkHost, tunnelOf } from '../support/hosts.js';
import { endOf, resourceId, success } from '../support/jobs.js';
import { listProcesses } from '../support/processes.js';
import { simulatedAnswer } from '../support/simulated-hosts.js';

const usual = { answer: simulatedAnswer };

describe('hostile hosts', () => {
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let output = '';
  let good: HostileSshServer;
  let evil: HostileSshServer;
  let goodId: string;
  let evilId: string;
  let credentialId: string;
  let workerWithoutHosts: number | undefined;

  async function register(name: string, { port, hostKey }: HostileSshServer): Promise<string> {
    const body = { name, address: '127.0.0.1', port, credentialId, hostKey };
    return (await createHost({ client, body, throwOnError: true })).data.id;
  }
  /** Its tunnel is wanted from then on. */
  async function configure(id: string): Promise<void> {
    const flags = { skipDockerImgImport: true, skipDockerInstall: true, skipYumRepoInstall: true };
    await success(client, createHostConfiguration({ client, body: { hostIds: [id], ...flags }, throwOnError: true }));
  }
  const isUp = (id: string, timeoutMs = 20_000) =>
    waitFor(async () => (await tunnelOf(client, id))?.state === 'up', {
      what: `the tunnel of ${id} to be up`,
      timeoutMs,
      intervalMs: 100,
    });
  const quarantineOf = async (id: string) =>
    (await getHost({ client, path: { id }, throwOnError: true })).data.quarantine;
  /** Answers of the API while something goes on, each within two seconds. */
  async function whileAlive<T>(work: Promise<T>): Promise<T> {
    let isDone = false;
    const asked = (async () => {
      let count = 0;
      for (; !isDone || count === 0; count++) {
        const answer = await fetch(`${du.url}/livez`, { signal: AbortSignal.timeout(2_000) });
        if (!answer.ok) throw new Error(`livez answered ${answer.status}`);
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    })();
    const done = work.finally(() => {
      isDone = true;
    });
    return (await Promise.all([done, asked]))[0];
  }

  beforeAll(async () => {
    folder = await tempDir('hostile-hosts');
    const onOutput = (text: string) => {
      output += text;
    };
    du = await Du.start({ folder: folder.path, stopsRegistry: true, environment: inspected, onOutput });
    client = await du.client();
    workerWithoutHosts = await findHostWorker(du.pid);
    const secrets = { name: 'hostile', username: 'root', password: 'hostile' };
    credentialId = (await createSshCredential({ client, body: secrets, throwOnError: true })).data.id;
    [good, evil] = await Promise.all([startHostileSshServer(usual), startHostileSshServer(usual)]);
    [goodId, evilId] = [await register('good', good), await register('evil', evil)];
    await configure(goodId);
    await isUp(goodId);
  });
  afterAll(async () => {
    await du?.stop();
    await Promise.all([good?.[Symbol.asyncDispose](), evil?.[Symbol.asyncDispose]()]);
    await folder?.remove();
  });
  beforeEach(() => {
    evil.options = usual;
  });
  afterEach(async ({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(`${du.output}\n`);
    await liftHostQuarantine({ client, path: { id: evilId }, throwOnError: true });
  });

  it('are spoken to by a process that runs once there is one', async () => {
    expect(workerWithoutHosts).toBeUndefined();
    expect(await findHostWorker(du.pid)).toBeGreaterThan(0);
  });

  it.each([0, 1])('take packets of %i bytes: the job says so, and nothing else notices', async (packetSize) => {
    evil.options = { ...usual, packetSize };
    const { job, result } = await whileAlive(checkHost(client, evilId));
    expect([job.state, result?.error?.code]).toEqual(['failed', 'host_protocol_error']);
    expect((await checkHost(client, goodId)).job.error).toBeNull();
    expect((await tunnelOf(client, goodId))?.state).toBe('up');
  });

  it('open channels with packets of 0 bytes through their tunnel: it says so, and nothing else notices', async () => {
    await configure(evilId);
    await isUp(evilId);
    evil.options = { ...usual, onForward: (host, port) => host.open(port, 0, { packetSize: 0 }) };
    for (const { socket } of evil.connections) socket.destroy();
    const error = () =>
      tunnelOf(client, evilId).then((tunnel) =>
        tunnel?.error?.code === 'host_protocol_error' ? tunnel.error : undefined,
      );
    await whileAlive(waitFor(error, { what: 'the error of the tunnel', timeoutMs: 30_000 }));
    expect((await tunnelOf(client, goodId))?.state).toBe('up');
    evil.options = usual;
    await isUp(evilId);
  });

  it('open 200 channels through their tunnel: it stays up, and says that most were refused', async () => {
    let refused = 0;
    evil.options = {
      ...usual,
      onLogin: (host) => host.on('CHANNEL_OPEN_FAILURE', () => void refused++),
      onForward: (host, port) => {
        for (let sender = 0; sender < 200; sender++) host.open(port, sender, { window: 0 });
      },
    };
    for (const { socket } of evil.connections) socket.destroy();
    await waitFor(() => refused >= 136, { what: 'the channels to be refused', timeoutMs: 30_000 });
    const error = () =>
      tunnelOf(client, evilId).then(
        (tunnel) => tunnel?.state === 'up' && tunnel.error?.code === 'host_channels_exceeded',
      );
    await waitFor(error, { what: 'the tunnel to say it', timeoutMs: 30_000 });
    for (const { socket } of evil.connections) socket.destroy();
  });

  it('trickle: others are checked meanwhile', async () => {
    evil.options = {
      onExec: (channel) => {
        channel.on('error', () => undefined).resume();
        const timer = setInterval(() => channel.write('.'), 200);
        channel.once('close', () => clearInterval(timer));
      },
    };
    const slow = await Promise.all(
      Array.from({ length: 4 }, () => createHostCheck({ client, body: { hostIds: [evilId] }, throwOnError: true })),
    );
    await waitFor(() => evil.commands.length > 0 && evil.connections.size >= 4, {
      what: 'them to be served',
      timeoutMs: 30_000,
    });
    const { job } = await checkHost(client, goodId);
    expect(job.state).toBe('succeeded');
    evil.options = usual;
    for (const { socket } of evil.connections) socket.destroy();
    for (const { data } of slow) await endOf(client, data.id);
  });

  it('say what a terminal would act on: it is in no answer and in no line of the log', async () => {
    const nasty = '\u001b]0;owned\u0007\u001b[2J\u009b31m\u202e';
    let exitCode = 1;
    evil.options = {
      onExec: (channel, command, mark) => {
        channel.on('error', () => undefined).resume();
        const isLook = command.startsWith('sh -s');
        channel.write(
          printed(
            mark,
            isLook ? `os=${nasty}debian\nprogram=5100 ${nasty}\nlistensOn=5100\n` : '',
            isLook ? exitCode : 1,
          ),
        );
        channel.stderr.write(`${nasty}failed${nasty}`);
        channel.exit(isLook ? exitCode : 1);
        channel.end();
      },
    };
    const before = output.length;
    const said: unknown[] = [];
    for (exitCode of [1, 0]) {
      const { data } = await createHostCheck({
        client,
        body: { hostIds: [evilId], pull: ['localhost:5100/pause:3.2'] },
        throwOnError: true,
      });
      const job = await endOf(client, data.id);
      said.push(job, (await getHostCheck({ client, path: { id: resourceId(job) }, throwOnError: true })).data);
    }
    said.push(
      (await getHost({ client, path: { id: evilId }, throwOnError: true })).data,
      (await listHostConfigurations({ client, throwOnError: true })).data,
    );
    expect(JSON.stringify(said)).toContain('failed');
    expect(JSON.stringify(said)).not.toMatch(/\\u001b|\\u0007|\u009b|\u202e/);
    expect(output.slice(before)).not.toMatch(/\\u001b|\\u009b|[^\P{Cc}\n\t]|\u202e/u);
  });

  it('freeze what serves them: that is killed within five seconds, they are named and left alone, and others go on', async () => {
    await isUp(evilId, 40_000);
    const before = await hostWorkerOf(du);
    await freezeOnDataFrom(before, evil.port, () => output);
    const frozenAt = Date.now();
    for (const host of evil.connections) host.send(messageOf(sshMessage.ignore, 'now'));
    const after = await whileAlive(nextHostWorker(du, before));
    // Five seconds of silence, and the start of the next one.
    expect(Date.now() - frozenAt).toBeLessThan(10_000);
    const killedAt = Date.now();
    await whileAlive(
      waitFor(async () => (await tunnelOf(client, goodId))?.state === 'up', {
        what: 'the other tunnel',
        timeoutMs: 15_000,
        intervalMs: 50,
      }),
    );
    expect(Date.now() - killedAt).toBeLessThan(10_000);
    const quarantine = await waitFor(() => quarantineOf(evilId), { what: 'the quarantine', timeoutMs: 10_000 });
    expect(quarantine).toMatchObject({ strikes: 1, reason: 'silent' });
    expect(await quarantineOf(goodId)).toBeNull();
    expect((await checkHost(client, evilId)).result?.error).toMatchObject({
      code: 'host_quarantined',
      until: quarantine.until,
    });
    expect(
      await waitFor(async () => (await tunnelOf(client, evilId))?.error?.code, {
        what: 'the tunnel to say it',
        timeoutMs: 20_000,
      }),
    ).toBe('host_quarantined');
    expect((await checkHost(client, goodId)).job.error).toBeNull();
    expect(await findHostWorker(du.pid)).toBe(after);

    // A restart is not frozen again: the host is not connected to.
    const logins = evil.connections.size;
    await du.end('SIGKILL');
    await waitFor(async () => !(await listProcesses()).some(({ pid }) => pid === after), {
      what: 'the host worker to end with the DU',
      timeoutMs: 10_000,
    });
    await du.startProcess();
    client = await du.client();
    await isUp(goodId);
    expect([logins, evil.connections.size]).toEqual([0, 0]);
    expect(await quarantineOf(evilId)).toEqual(quarantine);
    // Until somebody says so.
    await liftHostQuarantine({ client, path: { id: evilId }, throwOnError: true });
    await isUp(evilId);
  });

  it('are not blamed for a process that was stopped, and their jobs are given up when it dies three times', async () => {
    evil.options = { onExec: (channel) => void channel.resume() };
    const { data: check } = await createHostCheck({ client, body: { hostIds: [evilId] }, throwOnError: true });
    const attempt = async () => (await getJob({ client, path: { id: check.id }, throwOnError: true })).data.attempt;
    for (let death = 1; death <= 3; death++) {
      await waitFor(async () => (await attempt()) === death, {
        what: `attempt ${death}`,
        timeoutMs: 30_000,
        intervalMs: 50,
      });
      const pid = await hostWorkerOf(du);
      if (death === 1) await stopWhileIdle(pid, join(du.dataDir, 'run', `host-worker-${du.pid}.served`));
      else process.kill(pid, 'SIGKILL');
      await whileAlive(nextHostWorker(du, pid));
    }
    const job = await whileAlive(endOf(client, check.id));
    expect(job).toMatchObject({ state: 'failed', attempt: 3, error: { code: 'worker_lost' } });
    expect(await quarantineOf(evilId)).toBeNull();
    expect(await quarantineOf(goodId)).toBeNull();
    await isUp(goodId);
    evil.options = usual;
    await retryJob({ client, path: { id: check.id }, throwOnError: true });
    expect(await endOf(client, check.id)).toMatchObject({ state: 'succeeded', attempt: 4 });
  });
});
