import { Readable } from 'node:stream';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { type ScriptedAnswer, ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import { ContainerdHost, majorOf } from './containerd-host.js';

const hex = (digit: string): string => `sha256:${digit.repeat(64)}`;
const ctr = 'ctr --namespace k8s.io';
const list = (...lines: string[]): string => ['REF TYPE DIGEST SIZE', ...lines, ''].join('\n');
const line = (name: string, digest: string): string =>
  `${name} application/vnd.oci.image.index.v1+json ${digest} 1 MiB`;
const pause = 'localhost:5100/pause:3.2';
const image = { config: { digest: hex('c') } };
const index = {
  manifests: [
    { digest: hex('1'), platform: { os: 'linux', architecture: 'arm64' } },
    { digest: hex('2'), platform: { os: 'linux', architecture: 'amd64' } },
  ],
};

describe('containerd on a host', () => {
  let host: ScriptedHost;
  let answers: Record<string, ScriptedAnswer>;
  /** What containerd stores, by digest. */
  let content: Record<string, unknown>;
  let commands: string[];
  const containerd = () =>
    new ContainerdHost(host.connection as unknown as SshConnection, new AbortController().signal);
  beforeEach(() => {
    host = new ScriptedHost();
    commands = [];
    content = {};
    answers = { 'ctr plugins list': 'io.containerd.grpc.v1 cri linux/amd64 ok\n' };
    host.answer = (change, { script, args }) => {
      if (script.includes('content get'))
        return args.map((digest) => `${digest} ${digest in content ? JSON.stringify(content[digest]) : ''}\n`).join('');
      // Neither crictl nor a curl with HTTP/2.
      if (script.includes('crictl')) return { exitCode: 69 };
      commands.push(change);
      return answers[change] ?? '';
    };
  });

  it('knows its version, and none where it does not answer', async () => {
    answers['ctr --connect-timeout 5s version'] =
      'Client:\n  Version:  1.5.0\n\nServer:\n  Version:  1.6.20\n  Revision: x\n';
    expect(await containerd().version()).toBe('1.6.20');
    answers['ctr --connect-timeout 5s version'] = { exitCode: 1, stdout: 'Server:\n  Version:  1.6.20\n' };
    expect(await containerd().version()).toBeUndefined();
  });

  it.each([
    ['1.7.2', 1],
    ['v2.0.5', 2],
    [undefined, 1],
    ['unknown', 1],
  ])('of %s has the major version %s', (version, major) => expect(majorOf(version)).toBe(major));

  it('tells the IDs of images, of an index that of the platform', async () => {
    answers[`${ctr} images list`] = list(
      line(pause, hex('a')),
      line('localhost:5100/plain:1', hex('b')),
      line(hex('a'), hex('a')),
    );
    content = { [hex('a')]: index, [hex('b')]: image, [hex('2')]: { config: { digest: hex('d') } } };
    expect(await containerd().imageIds('linux/amd64')).toEqual(
      new Map([
        [pause, hex('d')],
        ['localhost:5100/plain:1', hex('c')],
      ]),
    );
  });

  it('counts an image as missing whose content is gone, or is nothing that it understands', async () => {
    answers[`${ctr} images list`] = list(line(pause, hex('a')), line('localhost:5100/odd:1', hex('b')), 'not a line');
    content = { [hex('b')]: { config: 'odd' } };
    expect(await containerd().imageIds('linux/amd64')).toEqual(new Map());
  });

  it('pulls by ctr where there is no way to its CRI, and says so', async () => {
    answers[`${ctr} images list`] = list(line(pause, hex('a')));
    const runtime = containerd();
    expect(await runtime.pull(pause)).toBe(hex('a'));
    expect(runtime.isBesideCri).toBe(true);
    expect(commands).toContain(`${ctr} images pull --hosts-dir /etc/containerd/certs.d ${pause}`);
  });

  it('does not pull by ctr what Kubernetes could not use', async () => {
    answers['ctr plugins list'] = 'io.containerd.grpc.v1 cri linux/amd64 skip\n';
    await expect(containerd().pull(pause)).rejects.toMatchObject({ code: 'host_cri_unavailable' });
    expect(commands).toEqual(['ctr plugins list']);
  });

  it('says in its own words why it could not pull', async () => {
    answers[`${ctr} images pull --hosts-dir /etc/containerd/certs.d ${pause}`] = { exitCode: 1, stderr: 'not found' };
    await expect(containerd().pull(pause)).rejects.toMatchObject({
      code: 'host_pull_failed',
      details: { detail: `${pause}: not found` },
    });
    answers = { 'ctr plugins list': answers['ctr plugins list'] };
    await expect(containerd().pull(pause)).rejects.toMatchObject({
      details: { detail: `${pause}: containerd knows no digest of it` },
    });
  });

  it('takes an archive, and gives names', async () => {
    await containerd().load(Readable.from([Buffer.from('archive')]));
    await containerd().tag(pause, 'localhost:5100/other:1');
    expect(commands).toEqual([`${ctr} images import -`, `${ctr} images tag --force ${pause} localhost:5100/other:1`]);
  });

  it('removes with the last name of an image those that the CRI has given it', async () => {
    const repository = 'localhost:5100/pause';
    const own = [line(pause, hex('a')), line(`${repository}@${hex('a')}`, hex('a')), line(hex('c'), hex('a'))];
    answers[`${ctr} images list`] = list(...own);
    await containerd().remove(pause);
    expect(commands.at(-1)).toBe(`${ctr} images rm --sync ${pause} ${repository}@${hex('a')} ${hex('c')}`);
    answers[`${ctr} images list`] = list(...own, line(`${repository}:other`, hex('a')));
    await containerd().remove(pause);
    expect(commands.at(-1)).toBe(`${ctr} images rm --sync ${pause}`);
    answers[`${ctr} images list`] = list(...own, line('example.com/pause:1', hex('a')));
    await containerd().remove(pause);
    expect(commands.at(-1)).toBe(`${ctr} images rm --sync ${pause} ${repository}@${hex('a')}`);
  });

  it.each([
    ['io.containerd.grpc.v1 cri linux/amd64 ok', 'ok', undefined],
    ['io.containerd.grpc.v1 cri linux/amd64 error', 'error', 'host_cri_unavailable'],
    ['io.containerd.grpc.v1 cri - skip', 'skip', 'host_cri_unavailable'],
    ['io.containerd.snapshotter.v1 overlayfs linux/amd64 ok', 'skip', 'host_cri_unavailable'],
    ['io.containerd.cri.v1 images - error\nio.containerd.grpc.v1 cri linux/amd64 ok', 'error', 'host_cri_unavailable'],
  ])('says of its CRI by `%s`: %s', async (said, state, code) => {
    answers['ctr plugins list'] = `${said}\n`;
    expect(await containerd().criState()).toBe(state);
    const asserted = containerd().assertCri();
    if (code) await expect(asserted).rejects.toMatchObject({ code });
    else await asserted;
  });

  it('that does not answer has no CRI', async () => {
    answers['ctr plugins list'] = { exitCode: 1 };
    expect(await containerd().criState()).toBeUndefined();
    await expect(containerd().assertCri()).rejects.toMatchObject({ code: 'host_runtime_missing' });
  });

  describe('is judged by what it makes of its files', () => {
    const dump = (path: string, changed = ''): string =>
      `# /etc/containerd/config.toml\n${changed}version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "${path}"\n`;
    let said: string;
    beforeEach(() => {
      host.answer = (change, { script }) => (script.includes('config dump') ? said : answers[change]);
    });

    it('which must be our folder, as it has read it', async () => {
      said = dump('/etc/containerd/certs.d');
      await containerd().assertInForce();
      expect(await containerd().isBehindFiles()).toBe(false);
    });

    it('and is told when it has not read them', async () => {
      said = dump('/etc/containerd/certs.d', '# changed=/etc/containerd/conf.d/a.toml\n');
      expect(await containerd().isBehindFiles()).toBe(true);
      await expect(containerd().assertInForce()).rejects.toMatchObject({
        code: 'host_config_ineffective',
        details: {
          detail: '/etc/containerd/conf.d/a.toml was changed after containerd had read it: restart containerd',
        },
      });
    });

    it('and no other folder', async () => {
      said = dump('/etc/other');
      await expect(containerd().assertInForce()).rejects.toMatchObject({ code: 'host_config_ineffective' });
    });
  });

  it('that is configured has the folder that its file names', async () => {
    host.files.set(
      '/etc/containerd/config.toml',
      'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/own"\n',
    );
    answers[`${ctr} images list`] = list(line(pause, hex('a')));
    host.answer = (change, { script }) => {
      if (script.includes('for path; do')) return undefined;
      if (script.includes('crictl')) return { exitCode: 69 };
      commands.push(change);
      return answers[change] ?? '';
    };
    const runtime = await ContainerdHost.configured(
      host.connection as unknown as SshConnection,
      new AbortController().signal,
    );
    await runtime.pull(pause);
    expect(commands).toContain(`${ctr} images pull --hosts-dir /etc/own ${pause}`);
  });
});
