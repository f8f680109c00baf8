import type { SshConnection } from '@airdock/ssh/connection/connection';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { beforeEach, describe, expect, it } from 'vitest';
import { HostFiles } from '../system/host-files.js';
import { HostSystem } from '../system/host-system.js';
import { type Activation, activateFile, containerdActivation } from './activate-file.js';
import type { ContainerdHost } from './containerd-host.js';

const path = '/etc/containerd/config.toml';

describe('activateFile', () => {
  let host: ScriptedHost;
  beforeEach(() => {
    host = new ScriptedHost();
    host.files.set(path, 'old\n');
  });
  async function activate(change: Partial<Activation> = {}, text = 'new\n') {
    const { signal } = new AbortController();
    const connection = host.connection as unknown as SshConnection;
    const [files, system] = [new HostFiles(connection, signal), new HostSystem(connection, signal)];
    const activation: Activation = {
      service: 'containerd',
      hasHeader: true,
      takeOver: async () => false,
      isUp: async () => true,
      ...change,
    };
    return activateFile(files, system, await files.read(path), text, activation);
  }

  it('restarts the service with the new file, which is pending until then', async () => {
    let wasPending = false;
    host.answer = (change) => {
      if (change.startsWith('service')) wasPending = host.files.has(`${path}.airdock-pending`);
      return undefined;
    };
    expect(await activate()).toBe('restart');
    expect(wasPending).toBe(true);
    expect(host.changes).toEqual([`write ${path}`, 'service restart containerd', `settle ${path}`]);
    expect(host.files.has(`${path}.airdock-pending`)).toBe(false);
  });

  it('does without a restart where the service takes the file over', async () => {
    expect(await activate({ takeOver: async () => true })).toBe('reload');
    expect(host.changes).toEqual([`write ${path}`, `settle ${path}`]);
  });

  it('writes nothing when only the service is behind', async () => {
    expect(await activate({}, 'old\n')).toBe('restart');
    expect(host.changes).toEqual(['service restart containerd', `settle ${path}`]);
  });

  it('puts the old file back, and starts the service with it', async () => {
    let starts = 0;
    host.answer = (change) =>
      change.startsWith('service') && ++starts === 1 ? { exitCode: 1, stdout: 'bad file' } : undefined;
    await expect(activate()).rejects.toMatchObject({
      code: 'host_runtime_failed',
      details: { isRunning: true, file: path, detail: expect.stringContaining('bad file') as string },
    });
    expect(host.files.get(path)).toBe('old\n');
    expect(starts).toBe(2);
  });

  it('says when the service does not start with the old file either', async () => {
    host.answer = (change) => (change.startsWith('service') ? { exitCode: 1, stdout: 'no disk' } : undefined);
    await expect(activate()).rejects.toMatchObject({
      details: {
        isRunning: false,
        detail: expect.stringContaining('does not start with it either (no disk)') as string,
      },
    });
    expect(host.files.get(path)).toBe('old\n');
  });

  it('removes a file that was not there before', async () => {
    host.files.clear();
    host.answer = (change) => (change.startsWith('service') ? { exitCode: 1, stdout: 'bad' } : undefined);
    await expect(activate()).rejects.toMatchObject({ code: 'host_runtime_failed' });
    expect(host.files.has(path)).toBe(false);
  });
});

describe('containerdActivation', () => {
  const isUpAfter = async (...states: (string | undefined)[]) => {
    const criState = async () => states.shift();
    return (await containerdActivation({ criState } as unknown as ContainerdHost)).isUp();
  };

  it.each([
    ['ok', 'ok', true],
    ['ok', undefined, false],
    ['ok', 'error', false],
    ['error', 'error', true],
    ['error', 'ok', true],
    ['skip', 'skip', true],
  ])('with a CRI that was %s and is %s is up: %s', async (before, now, isUp) =>
    expect(await isUpAfter(before, now)).toBe(isUp),
  );
});
