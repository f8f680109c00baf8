/** A run of tests can be killed at any moment: the next one must start as if nothing had been. */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { startEngine } from '@airdock/testing/lab/engine';
import { startLab } from '@airdock/testing/lab/lab';
import { waitFor } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';

const print = (line: string) => process.stderr.write(`lab: ${line}\n`);
const probe = await startEngine({ own: true });
if (!probe.engine) print(`skipped: ${probe.reason}`);
await probe.engine?.stop();

/** Another test process, with a host. */
async function startVictim() {
  const script = `import { startLab } from '@airdock/testing/lab/lab';
    const { lab } = await startLab({ own: true });
    const host = await lab.startHost();
    await host.exec('docker network create left-over');
    console.log(JSON.stringify({ runId: lab.engine.runId, socketPath: lab.engine.socketPath, id: host.id }));`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    cwd: import.meta.dirname,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString();
  });
  const giveUp = () => (child.exitCode === null ? undefined : new Error('the other test process ended'));
  await waitFor(() => output.includes('\n'), { timeoutMs: 240_000, what: 'a host in another process', giveUp });
  const victim = JSON.parse(output) as { runId: string; socketPath: string; id: string };
  return { ...victim, child, enginePid: Number(readFileSync(join(dirname(victim.socketPath), 'docker.pid'), 'utf8')) };
}

const cgroupsOf = (runId: string) =>
  ['/sys/fs/cgroup', ...readdirSync('/sys/fs/cgroup').map((name) => join('/sys/fs/cgroup', name))].filter((tree) =>
    existsSync(join(tree, `airdock-lab-${runId}`)),
  );

describe.skipIf(!probe.engine)('a run of the lab that is killed', () => {
  it.each([
    ['its engine ends by itself', false],
    ['its engine is killed as well', true],
  ])('leaves nothing that the next run does not remove: %s', async (_, killEngine) => {
    const victim = await startVictim();
    expect(cgroupsOf(victim.runId)).not.toEqual([]);
    if (killEngine) process.kill(victim.enginePid, 'SIGKILL');
    victim.child.kill('SIGKILL');
    await waitFor(() => victim.child.signalCode, { what: 'the other test process to be gone' });

    const { lab, reason } = await startLab({ own: true, log: print }).then((started) => ({
      reason: undefined,
      ...started,
    }));
    if (!lab) throw new Error(reason);
    await using _lab = lab;
    expect(lab.engine.socketPath).toBe(victim.socketPath);
    // A zombie that nobody has waited for yet has no command line.
    expect(
      existsSync(`/proc/${victim.enginePid}`) && readFileSync(`/proc/${victim.enginePid}/cmdline`, 'utf8'),
    ).toBeFalsy();
    expect(await lab.engine.docker.listContainers({ all: true })).toEqual([]);
    expect((await lab.engine.docker.listVolumes()).Volumes ?? []).toEqual([]);
    expect(cgroupsOf(victim.runId)).toEqual([]);
    const host = await lab.startHost();
    expect((await host.exec('docker network ls --quiet --filter name=left-over')).stdout).toBe('');
  });
});

describe.skipIf(!probe.engine)('two runs of the lab at once', () => {
  it('have engines and networks of their own, and leave no bridge', async () => {
    const bridges = () => Object.keys(networkInterfaces()).filter((name) => name.startsWith('airdock-lab'));
    const engines = await Promise.all([startEngine({ own: true }), startEngine({ own: true })]);
    const [one, other] = engines.map(({ engine }) => engine);
    try {
      expect(one?.socketPath).not.toBe(other?.socketPath);
      const [first, second] = await Promise.all([
        one?.docker.getNetwork('bridge').inspect(),
        other?.docker.getNetwork('bridge').inspect(),
      ]);
      expect(first?.IPAM?.Config?.[0]?.Subnet).toBeDefined();
      expect(first?.IPAM?.Config?.[0]?.Subnet).not.toBe(second?.IPAM?.Config?.[0]?.Subnet);
    } finally {
      await Promise.all([one?.stop(), other?.stop()]);
    }
    for (const engine of [one, other]) expect(bridges()).not.toContain(basename(dirname(engine?.socketPath ?? '')));
  });
});
