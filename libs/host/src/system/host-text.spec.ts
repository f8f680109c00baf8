/** Texts that a host has made to keep whoever reads them busy. */

import { setHostsDir } from '@airdock/core/container-runtime/containerd-config';
import { mergeDaemonJson } from '@airdock/core/container-runtime/daemon-json';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { describe, expect, it } from 'vitest';
import { KubeadmHost } from '../kubeadm/kubeadm-host.js';
import { HostSystem } from './host-system.js';

const size = 1024 * 1024 - 1;
/** Long runs of one character, and of beginnings of what is looked for, up to all that is read of a command. */
const texts = [
  ...[' ', '\t', '\n', '|', '-', '.', ':', 'a', '1', '\u001b', '\u001b[', '\u001b]', '\u009b'],
  ...[
    ' | ',
    ' |',
    'a.',
    'installed ',
    'Inst a',
    'kubeadm join ',
    'kubeadm join a:',
    'ready= unschedulable=',
    'a=',
    'sha256:',
    'x ready=',
    '"error"',
  ],
].map((piece) => piece.repeat(Math.ceil(size / piece.length)).slice(0, size));
texts.push(`kubeadm | 1${' '.repeat(size - 20)}x`, `kubeadm${' '.repeat(size - 20)}|`);

const connectionThat = (said: string) =>
  ({
    run: async () => said.trim(),
    exec: async () => ({ exitCode: 0, stdout: said, stderr: said }),
    elevation: async () => 'root',
    forwardToSocket: async () => undefined,
  }) as unknown as SshConnection;

/** Long for what takes milliseconds, short for what takes minutes. */
const boundMs = 5_000;
async function timed(action: () => unknown): Promise<number> {
  const started = performance.now();
  try {
    await action();
  } catch {
    // Refused is fine too.
  }
  return performance.now() - started;
}

describe('what a host prints', () => {
  it.each(texts.map((text) => [`${JSON.stringify(text.slice(0, 12))}…`, text]))(
    'is read in no time: %s',
    async (_name, text) => {
      const signal = new AbortController().signal;
      const system = new HostSystem(connectionThat(text), signal);
      const kubeadm = new KubeadmHost(connectionThat(text), signal, 'node-1', 'docker');
      const actions: (() => unknown)[] = [
        () => system.facts(),
        () => system.offeredVersions('debian', 'kubeadm'),
        () => system.offeredVersions('redhat', 'kubeadm'),
        () => system.installedPackages('debian'),
        () => system.installedVersions('debian', ['kubeadm']),
        () => system.wouldInstall('debian', ['a'], { onlyAirdock: true }),
        () => system.missingPackages('debian', ['a']),
        () => system.service('start', 'docker'),
        () => kubeadm.state(),
        () => kubeadm.nodes(),
        () => kubeadm.node('a'),
        () => kubeadm.address(),
        () => kubeadm.createJoinSecrets('', true),
        () => mergeDaemonJson(text.slice(0, 512 * 1024), 'http://127.0.0.1:5100'),
        () => setHostsDir(text.slice(0, 512 * 1024), 1),
      ];
      for (const action of actions) expect(await timed(action)).toBeLessThan(boundMs);
    },
  );

  it('as TOML is refused or edited in no time, whatever its depth', async () => {
    const deep = `version = 2\n[${'a.'.repeat(100_000)}b]\n${Array.from({ length: 30_000 }, (_, index) => `k${index}=1`).join('\n')}\n`;
    expect(await timed(() => setHostsDir(deep.slice(0, 512 * 1024), 1))).toBeLessThan(boundMs);
  });

  it('names no package that is none', async () => {
    const said = 'installed good\ninstalled --force\ninstalled a\u001b[31m\ninstalled a b\n';
    expect(
      await new HostSystem(connectionThat(said), new AbortController().signal).installedPackages('debian'),
    ).toEqual(new Set(['good']));
  });
});
