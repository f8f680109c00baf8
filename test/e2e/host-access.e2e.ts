/**
 * How hosts are reached: passwords for login and sudo, jump hosts, host keys, kinds of user keys. On real hosts with a
 * real sshd and sudo.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { getHost, patchHost } from '@airdock/clients/generated/sdk.gen';
import type { CreateHost, CreateSshCredential } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { beforeAll, describe, expect, it } from 'vitest';
import { Du } from '../support/du.js';
import { checkHost, registerHost } from '../support/hosts.js';
import { endWithLab } from '../support/lab-ends.js';

const password = "it's Sesam $HOME öffne dich";
const wrongPassword = 'Simsalabim 4711';
const passphrase = 'Abrakadabra 4711';
const started = await startLab();
if (!started.lab) process.stderr.write(`host access: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('a host is reached', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let host: LabHost;
  let printed = '';
  const answers: unknown[] = [];

  beforeAll(async () => {
    folder = await tempDir('host-access');
    const onOutput = (text: string) => {
      printed += text;
    };
    [du, host] = await Promise.all([
      Du.start({ folder: folder.path, privateRegistryType: 'none', logLevel: 'debug', onOutput }),
      lab.startHost({ withDocker: false, adminPassword: password }),
    ]);
    client = await du.client();
  });
  endWithLab(lab, () => ({ du, folder }));

  const register = (of: LabHost, credential: Partial<CreateSshCredential>, change: Partial<CreateHost> = {}) =>
    registerHost(client, of, {
      credential: { username: 'admin', ...credential },
      onAnswer: (answer) => answers.push(answer),
      ...change,
    });
  async function check(hostId: string) {
    const { job, result } = await checkHost(client, hostId);
    answers.push(job, result);
    return { job, error: job.error, checkOf: (name: string) => result?.checks.find((one) => one.name === name) };
  }

  it('with a password, and sudo gets its own without anybody seeing it', async () => {
    const hostId = await register(host, { password, sudoPassword: password });
    let over = false;
    const first = check(hostId).finally(() => {
      over = true;
    });
    let processes = '';
    while (!over)
      processes += (await host.exec('cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr "\\0" "\\n"'))
        .stdout;
    const { job, checkOf } = await first;
    expect(job.state).toBe('succeeded');
    expect(checkOf('sudo')).toMatchObject({ status: 'pass', seen: 'sudo with password' });
    expect(checkOf('time')).toMatchObject({ status: 'pass' });
    expect((await getHost({ client, path: { id: hostId }, throwOnError: true })).data.facts).toMatchObject({
      os: 'debian',
      osFamily: 'debian',
      packageManager: 'apt-get',
    });
    expect(processes).toContain('sshd');
    expect(processes).not.toContain(password);
  });

  it('but not as root with a wrong password, without one, or where sudo wants a terminal', async () => {
    const wrong = await check(await register(host, { password, sudoPassword: wrongPassword }));
    expect(wrong.error).toMatchObject({
      code: 'host_sudo_failed',
      nextStep: expect.stringContaining('right sudoPassword') as string,
    });
    expect(wrong.error?.detail).toContain('the sudoPassword of the credential');
    const missing = await check(await register(host, { password }));
    expect(missing.error).toMatchObject({
      code: 'host_sudo_failed',
      detail: expect.stringContaining('has no sudoPassword') as string,
    });
    await host.exec("echo 'Defaults requiretty' >/etc/sudoers.d/tty");
    const noTerminal = await check(await register(host, { password, sudoPassword: password }));
    expect(noTerminal.error).toMatchObject({
      code: 'host_sudo_failed',
      detail: expect.stringContaining('requiretty is set') as string,
    });
    await host.exec('rm /etc/sudoers.d/tty');
    const noLogin = await check(await register(host, { password: wrongPassword }));
    expect(noLogin.error).toMatchObject({
      code: 'host_auth_failed',
      nextStep: expect.stringContaining('KbdInteractiveAuthentication') as string,
    });
  });

  it('where sshd asks by keyboard-interactive only', async () => {
    await host.exec(
      "printf 'PasswordAuthentication no\\nKbdInteractiveAuthentication yes\\n' >/etc/ssh/sshd_config.d/ask.conf",
    );
    await host.reboot();
    expect((await check(await register(host, { password, sudoPassword: password }))).job.state).toBe('succeeded');
    expect((await check(await register(host, { password: wrongPassword }))).error).toMatchObject({
      code: 'host_auth_failed',
    });
  });

  it.each([
    ['ECDSA', '-t ecdsa', undefined],
    ['RSA', '-t rsa', undefined],
    ['RSA in PEM', '-t rsa -m PEM', undefined],
    ['Ed25519 with a passphrase', '-t ed25519', passphrase],
    ['ECDSA in PKCS #8 with a passphrase', '-t ecdsa -m PKCS8', passphrase],
  ])('with an %s key', async (_, args, locked) => {
    const make = `rm -f /tmp/key*; ssh-keygen -q ${args} -N '${locked ?? ''}' -f /tmp/key && cat /tmp/key.pub >>/root/.ssh/authorized_keys && cat /tmp/key`;
    const privateKey = (await host.exec(make)).stdout;
    const hostId = await register(host, { username: 'root', privateKey, ...(locked ? { passphrase: locked } : {}) });
    const { job, checkOf } = await check(hostId);
    expect(job.state).toBe('succeeded');
    expect(checkOf('sudo')).toMatchObject({ seen: 'root' });
  });

  it('through another host, where it lets nobody else in', async () => {
    await using inner = await lab.startHost({ withDocker: false });
    await inner.exec(`iptables -A INPUT -p tcp --dport 22 ! -s ${host.address} -j DROP`);
    const jumpHostId = await register(host, { username: 'root', privateKey: host.privateKey });
    const hostId = await register(inner, { username: 'root', privateKey: inner.privateKey }, { jumpHostId });
    const { job, checkOf } = await check(hostId);
    expect(job.state).toBe('succeeded');
    expect(checkOf('ssh')?.seen).toContain(`${inner.address}:22 through ${host.address}:22`);
    expect(checkOf('firewall')).toMatchObject({
      status: 'warning',
      seen: expect.stringContaining('iptables') as string,
    });
    await patchHost({ client, path: { id: hostId }, body: { jumpHostId: null }, throwOnError: true });
    expect((await check(hostId)).error).toMatchObject({ code: 'host_timeout' });
    await patchHost({ client, path: { id: hostId }, body: { jumpHostId }, throwOnError: true });
    await patchHost({ client, path: { id: jumpHostId }, body: { hostKey: inner.hostKey }, throwOnError: true });
    const error = (await check(hostId)).error;
    expect(error).toMatchObject({ code: 'host_key_mismatch', jumpHost: expect.any(String) as string });
    expect(error?.detail).toMatch(/^host-\d+: jump host host-\d+: pinned/);
  });

  it('with the key that it showed first, and no other', async () => {
    await using fresh = await lab.startHost({ withDocker: false });
    const hostId = await register(fresh, { username: 'root', privateKey: fresh.privateKey }, { trustOnFirstUse: true });
    const get = async () => (await getHost({ client, path: { id: hostId }, throwOnError: true })).data;
    expect(await get()).toMatchObject({ hostKeySource: 'firstUse', hostKeyFingerprint: null });
    expect((await check(hostId)).job.state).toBe('succeeded');
    expect(await get()).toMatchObject({ hostKeySource: 'firstUse', hostKeyFingerprint: fresh.hostKeyFingerprint });
    await fresh.exec('rm /etc/ssh/ssh_host_*');
    await fresh.reboot();
    const shown = (await fresh.exec('ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub')).stdout.split(' ')[1];
    expect((await check(hostId)).error).toMatchObject({
      code: 'host_key_mismatch',
      pinned: fresh.hostKeyFingerprint,
      seen: shown,
    });
    expect(await get()).toMatchObject({ hostKeyFingerprint: fresh.hostKeyFingerprint });
  });

  it('and the passwords are in no answer, no log at its most talkative, and no file of the DU', async () => {
    expect(printed).toContain('"level":20');
    const texts = new Map([
      ['the log', printed],
      ['the answers', JSON.stringify(answers)],
    ]);
    for (const entry of await readdir(du.dataDir, { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      if (entry.isFile()) texts.set(path, await readFile(path, 'utf8'));
    }
    expect([...texts.keys()].some((path) => path.endsWith('db/host.sqlite'))).toBe(true);
    const secrets = [password, JSON.stringify(password).slice(1, -1), wrongPassword, passphrase];
    expect(
      [...texts].filter(([, text]) => secrets.some((secret) => text.includes(secret))).map(([name]) => name),
    ).toEqual([]);
  });
});
