/**
 * The lab itself: if this fails, look here before you look at the other tests in `test/`.
 * Times of each step are printed, because every test that uses a host pays them.
 */
import { createReadStream } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import type { LabHost } from '@airdock/testing/lab/host';
import { buildImages, saveImages, skopeoToOciArchive } from '@airdock/testing/lab/images';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { openSsh } from '@airdock/testing/lab/ssh';
import { tempDir } from '@airdock/testing/servers';
import { afterAll, describe, expect, it } from 'vitest';

const print = (line: string) => process.stderr.write(`lab: ${line}\n`);
async function timed<T>(what: string, action: () => Promise<T>): Promise<T> {
  const start = performance.now();
  const result = await action();
  print(`${what}: ${((performance.now() - start) / 1000).toFixed(1)} s`);
  return result;
}

const started = await timed('engine and host image', () => startLab({ log: print }));
if (!started.lab) print(`skipped: ${started.reason}`);

describe.skipIf(!started.lab)('the lab', () => {
  const lab = started.lab as Lab;
  let host: LabHost;
  afterAll(() => timed('stop', () => lab.stop()));

  it('starts a host that accepts its key over SSH and shows the pinned host key', async () => {
    host = await timed('host with Docker', () => lab.startHost());
    await using ssh = await openSsh(host);
    expect((await ssh.exec('hostname')).stdout.trim()).toBe(host.name);
    const shown = await ssh.exec('ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub');
    expect(shown.stdout).toContain(host.hostKeyFingerprint);
    const other = await ssh.exec('ssh-keygen -q -t ed25519 -N "" -f /tmp/other && cat /tmp/other.pub');
    await expect(openSsh({ ...host, hostKey: other.stdout })).rejects.toThrow('verification failed');
  });

  it('has an account that may use sudo and one that may not', async () => {
    await using admin = await openSsh({ ...host, user: 'admin' });
    expect((await admin.exec('sudo -n id -u')).stdout.trim()).toBe('0');
    await using guest = await openSsh({ ...host, user: 'guest' });
    expect((await guest.exec('sudo -n id -u')).exitCode).toBe(1);
  });

  it('runs in the host what was saved by the machine’s engine', async () => {
    await using dir = await tempDir('lab');
    const names = ['k8s.gcr.io/pause:3.2', 'calico/node:v3.18.1', 'quay.io/coreos/flannel:v0.14.0'];
    await timed('three images', () =>
      buildImages(
        lab.engine,
        names.map((name) => ({ name, layersBytes: [100_000] })),
      ),
    );
    const file = join(dir.path, 'images.tar');
    await saveImages(lab.engine, names, file);
    await using ssh = await openSsh(host);
    expect((await ssh.exec('docker info --format "{{.Driver}}"')).stdout.trim()).toBe('overlay2');
    const loaded = await timed('docker load', () => ssh.exec('docker load', { input: createReadStream(file) }));
    for (const name of names) expect(loaded.stdout).toContain(`Loaded image: ${name}`);
    const output = await timed('docker run', () => ssh.exec('docker run --rm calico/node:v3.18.1'));
    expect(output).toEqual({ stdout: 'hello from calico/node:v3.18.1\n', stderr: '', exitCode: 0 });
    await skopeoToOciArchive(file, 'calico/node:v3.18.1', join(dir.path, 'oci.tar'), 'docker.io/calico/node:v3.18.1');
  });

  it('reboots a host, which keeps its key, its address and its images', async () => {
    await timed('reboot', () => host.reboot());
    await using ssh = await openSsh(host);
    expect((await ssh.exec('docker images --quiet')).stdout.trim().split('\n')).toHaveLength(3);
  });

  it('starts a host without Docker on which the registry port is taken', async () => {
    await using bare = await timed('host without Docker', () => lab.startHost({ withDocker: false, occupyPort: 5100 }));
    expect((await bare.exec('command -v docker || dpkg -s docker.io')).exitCode).not.toBe(0);
    const port = await bare.exec('ss -Hltn "sport = :5100"');
    expect(port.stdout).toContain('127.0.0.1:5100');
    // Only on the host's own loopback.
    const outside = new Promise((resolve, reject) =>
      connect(5100, bare.address, () => resolve('open')).once('error', reject),
    );
    await expect(outside).rejects.toThrow('ECONNREFUSED');
  });
});
