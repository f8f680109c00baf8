/** Logins that print, or are no POSIX shells, and what the settings of a real sshd refuse or open, on real hosts. */
import { copyFile, mkdir } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { findProgram, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { checkHost, configureHost, out, registerHost, stateOf, tunnelOf, wrongPulls } from '../support/hosts.js';
import { endWithLab } from '../support/lab-ends.js';

const images = ['k8s.gcr.io/pause:3.2'];
const started = await startLab();
if (!started.lab) process.stderr.write(`host shells: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('the login of hosts', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let bundleId: string;
  /** Without systemd, so that sshd itself listens. */
  let plain: LabHost;
  let booted: LabHost;
  let ids: Record<'root' | 'admin' | 'booted', string>;

  beforeAll(async () => {
    folder = await tempDir('host-shells');
    [du, plain, booted] = await Promise.all([
      Du.start({ folder: folder.path }),
      lab.startHost({ name: 'shells' }),
      lab.startHost({ name: 'shells-booted', withSystemd: true }),
    ]);
    client = await du.client();
    ids = {
      root: await registerHost(client, plain),
      admin: await registerHost(client, plain, { credential: { username: 'admin', privateKey: plain.privateKey } }),
      booted: await registerHost(client, booted),
    };
    bundleId = await carryIn(client, du, { images });
    await push(client, bundleId);
  });
  endWithLab(lab, () => ({ du, folder }));

  const pulls = async (id: string) =>
    expect(await wrongPulls(client, du.registryPort, id, [`localhost:${du.registryPort}/pause:3.2`])).toEqual([]);
  const checkOf = async (id: string, name: string) =>
    (await checkHost(client, id)).result?.checks.find((check) => check.name === name);
  /** There and away again: what was put on the host is off it. */
  const thereAndBack = async (id: string, host: LabHost) => {
    const before = await stateOf(host);
    const { job, result } = await configureHost(client, id, { bundleIds: [bundleId] });
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    await pulls(id);
    const away = await configureHost(client, id, { action: 'unconfigure' });
    expect(away.job).toMatchObject({ state: 'succeeded', error: null });
    expect(await stateOf(host)).toBe(before);
    return { warnings: result.warnings, warningsAway: away.result.warnings };
  };
  const lines = '/etc/ssh/sshd_config.d/lab.conf';
  /** Settings of sshd, which takes the first it finds of each; those of Debian's own file come after. */
  const withSettings = async (host: LabHost, settings: string, use: () => Promise<void>) => {
    const reload = host === booted ? 'systemctl reload ssh' : 'kill -HUP 1';
    await out(host, `printf '%s\\n' '${settings}' >${lines} && sshd -t && ${reload}`);
    await host.ready();
    try {
      await use();
    } finally {
      await out(host, `rm ${lines} && ${reload}`);
      await host.ready();
    }
  };
  const listening = (host: LabHost, port: number) => out(host, `ss -Hltn 'sport = :${port}' | awk '{print $4}'`);
  const isOpen = (address: string, port: number) =>
    new Promise<boolean>((resolve) => {
      const socket = createConnection({ host: address, port, timeout: 3_000 });
      const end = (answer: boolean) => {
        socket.destroy();
        resolve(answer);
      };
      socket
        .once('connect', () => end(true))
        .once('error', () => end(false))
        .once('timeout', () => end(false));
    });

  it.each([
    ['root', '/root/.bashrc', "echo hi; printf '\\033[2JWelcome'; trap 'echo bye' EXIT", 'hi Welcome'],
    ['admin', '/home/admin/.bashrc', 'head -c 300000 /dev/zero | tr "\\0" x; sleep 86400 &', 'xxxx'],
    ['admin', '/home/admin/.bashrc', 'set -x', '+'],
  ] as const)('of %s may print in %s: %s', async (user, file, line, noise) => {
    await out(
      plain,
      `cp ${file} /tmp/bashrc; printf '%s\\n' "$(cat <<'EOL'\n${line}\nEOL\n)" | cat - /tmp/bashrc >${file}`,
    );
    try {
      const { warnings, warningsAway } = await thereAndBack(ids[user], plain);
      for (const all of [warnings, warningsAway])
        expect(all.join()).toContain(`login: prints around every command: ${noise}`);
      expect(await checkOf(ids[user], 'login')).toMatchObject({
        status: 'warning',
        seen: expect.stringContaining(noise) as string,
      });
    } finally {
      await out(plain, `cp /tmp/bashrc ${file}; pkill -u ${user} -x sleep || :`);
    }
    expect(await checkOf(ids[user], 'login')).toMatchObject({ status: 'pass' });
  });

  it.each([
    ['tcsh', '.tcshrc'],
    ['dash', '.profile'],
    ['rbash', '.bashrc'],
  ])('may be %s', async (shell, startFile) => {
    const program = findProgram(shell) as string;
    const bin = join(folder.path, shell);
    await mkdir(bin);
    await copyFile(program, join(bin, shell));
    await plain.copyIn(bin, '/usr/local/bin');
    await out(
      plain,
      `chmod 755 /usr/local/bin/${shell}; usermod -s /usr/local/bin/${shell} admin; cd /home/admin; touch ${startFile}; echo 'echo from ${shell}' | cat - ${startFile} >/tmp/start; cp /tmp/start ${startFile}`,
    );
    await thereAndBack(ids.admin, plain);
    expect(await checkOf(ids.admin, 'login')).toMatchObject(
      shell === 'dash' ? { status: 'pass' } : { seen: expect.stringContaining(`from ${shell}`) as string },
    );
    await out(plain, `usermod -s /bin/bash admin; sed -i '/^echo from/d' /home/admin/${startFile}`);
  });

  it.each([
    [
      'nologin',
      'usermod -s /usr/sbin/nologin admin',
      'usermod -s /bin/bash admin',
      'This account is currently not available',
    ],
    ['false', 'usermod -s /bin/false admin', 'usermod -s /bin/bash admin', 'it ended with 1, and it said nothing'],
    [
      'a forced command',
      `sed -i 's/^/command="echo only backups" /' /home/admin/.ssh/authorized_keys`,
      `sed -i 's/^command="echo only backups" //' /home/admin/.ssh/authorized_keys`,
      'it said: only backups',
    ],
  ])('that runs nothing is named: %s', async (_what, spoil, mend, words) => {
    await out(plain, spoil);
    for (const { job } of [await checkHost(client, ids.admin), await configureHost(client, ids.admin)])
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'host_shell_unusable', detail: expect.stringContaining(words) as string },
      });
    await out(plain, mend);
    expect((await checkHost(client, ids.admin)).job).toMatchObject({ state: 'succeeded' });
  });

  it.each([
    ['AllowTcpForwarding no', `AllowTcpForwarding no (${lines}:1)`],
    ['AllowTcpForwarding local', `AllowTcpForwarding local (${lines}:1)`],
    ['PermitListen none', `PermitListen none (${lines}:1)`],
    ['PermitListen 127.0.0.1:1', `PermitListen 127.0.0.1:1 (${lines}:1)`],
    ['DisableForwarding yes', `DisableForwarding yes (${lines}:1)`],
    ['Match Address *,!127.0.0.1\n  AllowTcpForwarding no', `AllowTcpForwarding no (${lines}:2)`],
  ])('may not listen with %s: it is named, with its place', async (settings, named) => {
    await withSettings(plain, settings, async () => {
      expect(await checkOf(ids.root, 'forwarding')).toMatchObject({
        status: 'failure',
        seen: expect.stringContaining(named) as string,
      });
      const { job } = await configureHost(client, ids.root, { bundleIds: [bundleId] });
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'host_forwarding_refused', detail: expect.stringContaining(named) as string },
      });
    });
    await thereAndBack(ids.root, plain);
  });

  it('may listen on localhost by that name only: the tunnel goes there', async () => {
    await withSettings(plain, `PermitListen localhost:${du.registryPort}`, async () => {
      for (const id of [ids.root, ids.admin]) {
        expect(await checkOf(id, 'forwarding')).toMatchObject({ status: 'pass' });
        await thereAndBack(id, plain);
      }
    });
    await withSettings(plain, `PermitListen [::1]:${du.registryPort}`, async () =>
      expect(await checkOf(ids.admin, 'forwarding')).toMatchObject({
        status: 'failure',
        seen: expect.stringContaining(`PermitListen 127.0.0.1:${du.registryPort} is enough`) as string,
      }),
    );
  });

  it.each(['restrict', 'no-port-forwarding'])('may not listen with %s before its key', async (option) => {
    await out(plain, `sed -i 's/^/${option} /' /root/.ssh/authorized_keys`);
    const { job } = await configureHost(client, ids.root);
    await out(plain, `sed -i 's/^${option} //' /root/.ssh/authorized_keys`);
    expect(job).toMatchObject({
      state: 'failed',
      error: {
        code: 'host_forwarding_refused',
        detail: expect.stringContaining(`/root/.ssh/authorized_keys: ${option}`) as string,
      },
    });
  });

  it('with GatewayPorts yes would open the registry to the network: it is closed, and named', async () => {
    const { registryPort } = du;
    await withSettings(plain, 'GatewayPorts yes', async () => {
      const { job } = await configureHost(client, ids.root, { bundleIds: [bundleId] });
      expect(job).toMatchObject({
        state: 'failed',
        error: {
          code: 'tunnel_exposed',
          detail: expect.stringMatching(
            /on .*0\.0\.0\.0.*: GatewayPorts yes \(\/etc\/ssh\/sshd_config\.d\/lab\.conf:1\)/,
          ) as string,
        },
      });
      expect(await listening(plain, registryPort)).toBe('');
      expect(await checkOf(ids.root, 'forwarding')).toMatchObject({ status: 'failure' });
    });
    await withSettings(plain, 'GatewayPorts clientspecified', async () => void (await thereAndBack(ids.root, plain)));
  });

  it('with GatewayPorts yes set later: the tunnel stays down, and is back when that is gone', async () => {
    expect((await configureHost(client, ids.root)).job).toMatchObject({ state: 'succeeded', error: null });
    await withSettings(plain, 'GatewayPorts yes', async () => {
      await out(plain, 'pkill -f "^sshd: root@notty"; :');
      await waitFor(async () => (await tunnelOf(client, ids.root))?.error?.code === 'tunnel_exposed', {
        what: 'the tunnel to be refused',
        timeoutMs: 60_000,
      });
      // As long as it is tried again and again.
      for (let round = 0; round < 20; round++) {
        const answer = await fetch(`http://${plain.address}:${du.registryPort}/v2/_catalog`, {
          signal: AbortSignal.timeout(1_000),
        }).catch(() => undefined);
        expect(answer?.status).toBeUndefined();
      }
    });
    await waitFor(async () => (await tunnelOf(client, ids.root))?.state === 'up', {
      what: 'the tunnel to be up',
      timeoutMs: 60_000,
    });
    expect(await isOpen(plain.address, du.registryPort)).toBe(false);
    await pulls(ids.root);
    expect((await configureHost(client, ids.root, { action: 'unconfigure' })).job).toMatchObject({
      state: 'succeeded',
      error: null,
    });
  });

  it('holds the ports for itself whatever GatewayPorts says, and not when a drop-in of the unit opens them', async () => {
    const { registryPort } = du;
    await withSettings(booted, 'GatewayPorts yes', async () => {
      const { job } = await configureHost(client, ids.booted, { bundleIds: [bundleId] });
      expect(job).toMatchObject({ state: 'succeeded', error: null });
      expect(await tunnelOf(client, ids.booted)).toMatchObject({ state: 'up', hostEnd: 'socket' });
      expect(await isOpen(booted.address, registryPort)).toBe(false);
    });
    const dropIn = '/etc/systemd/system/airdock-registry.socket.d/open.conf';
    const restart =
      'systemctl daemon-reload; systemctl stop airdock-registry.socket airdock-registry.service; systemctl start airdock-registry.socket';
    await out(
      booted,
      `mkdir -p ${dropIn.slice(0, dropIn.lastIndexOf('/'))}; printf '[Socket]\\nListenStream=0.0.0.0:9${registryPort % 1000}\\n' >${dropIn}; ${restart}`,
    );
    const { job } = await configureHost(client, ids.booted);
    expect(job).toMatchObject({
      state: 'failed',
      error: {
        code: 'tunnel_exposed',
        detail: expect.stringContaining('airdock-registry.socket listens on 0.0.0.0') as string,
      },
    });
    await out(booted, 'pkill -f "^sshd: root@notty"; :');
    await waitFor(async () => (await tunnelOf(client, ids.booted))?.error?.detail?.includes(dropIn), {
      what: 'the tunnel to be refused',
      timeoutMs: 60_000,
    });
    await out(booted, `rm -r ${dropIn.slice(0, dropIn.lastIndexOf('/'))}; ${restart}`);
    await waitFor(async () => (await tunnelOf(client, ids.booted))?.state === 'up', {
      what: 'the tunnel to be up',
      timeoutMs: 60_000,
    });
    await pulls(ids.booted);
  });

  it.each(['AllowStreamLocalForwarding no', 'Match Address *,!127.0.0.1\n  AllowStreamLocalForwarding no'])(
    'holds no ports with %s, which the check finds out',
    async (settings) => {
      await configureHost(client, ids.booted, { action: 'unconfigure' });
      await withSettings(booted, settings, async () => {
        for (let round = 0; round < 2; round++) {
          const { job, result } = await configureHost(client, ids.booted);
          expect(job).toMatchObject({ state: 'succeeded', error: null });
          expect(result.warnings.join()).toContain('its sshd does not allow stream local forwarding');
          expect(await tunnelOf(client, ids.booted)).toMatchObject({ state: 'up', hostEnd: 'port' });
        }
        await pulls(ids.booted);
      });
    },
  );

  it.each(['root', 'admin'] as const)('of %s works with MaxSessions 1, which the check names', async (user) => {
    await withSettings(plain, 'MaxSessions 1', async () => {
      await thereAndBack(ids[user], plain);
      expect(await checkOf(ids[user], 'sessions')).toMatchObject({
        status: 'warning',
        seen: `1 at a time: MaxSessions 1 (${lines}:1)`,
      });
    });
  });

  it('is told apart from a host that lets no session in', async () => {
    await withSettings(plain, 'MaxSessions 0', async () => {
      const { job } = await checkHost(client, ids.root);
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'host_session_refused', nextStep: expect.stringContaining('MaxSessions') as string },
      });
    });
  });
});
