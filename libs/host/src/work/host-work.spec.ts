import type { SshConnection } from '@airdock/ssh/connection/connection';
import { ScriptedHost } from '@airdock/testing/scripted-host';
import { describe, expect, it } from 'vitest';
import { fileChange, type HostAdditions, type HostStep, HostWork, hostChange, skipped } from './host-work.js';

function begin({ dryRun = false, startedAt }: { dryRun?: boolean; startedAt?: number } = {}) {
  const host = new ScriptedHost();
  const steps: HostStep<'first' | 'second', 'done' | 'unchanged' | 'planned' | 'skipped'>[] = [];
  const warnings: string[] = [];
  const remembered: Partial<HostAdditions>[] = [];
  const work = new HostWork<'first' | 'second', 'skipped'>({
    connection: host.connection as unknown as SshConnection,
    signal: new AbortController().signal,
    dryRun,
    onStep: (step) => steps.push(step),
    onWarning: (warning) => warnings.push(warning),
    remember: async (additions) => void remembered.push(additions),
    ...(startedAt === undefined ? {} : { startedAt }),
  });
  return { host, work, steps, warnings, remembered };
}

const path = '/etc/example.conf';

describe('HostWork', () => {
  it('reports each step at its end, with what it changed', () => {
    const { work, steps } = begin();
    work.recordChanges('first', [hostChange('service', 'restart', 'example')], 'an example');
    expect(steps).toEqual([
      {
        name: 'first',
        status: 'done',
        detail: 'an example',
        changes: [{ kind: 'service', action: 'restart', target: 'example', diff: null }],
        durationMs: expect.any(Number) as number,
      },
    ]);
    work.record('second', skipped('nobody wants it'));
    expect(steps[1]).toMatchObject({ name: 'second', status: 'skipped', detail: 'nobody wants it', changes: [] });
  });

  it('gives a step the time since the one before it, and the first the time since the start', () => {
    const { work, steps } = begin({ startedAt: performance.now() - 5_000 });
    work.recordChanges('first', [], '');
    work.recordChanges('second', [], '');
    expect(steps[0]?.durationMs).toBeGreaterThanOrEqual(5_000);
    expect(steps[1]?.durationMs).toBeLessThan(5_000);
  });

  it.each([
    [false, [], 'unchanged'],
    [true, [], 'unchanged'],
    [false, [hostChange('package', 'install', 'a')], 'done'],
    [true, [hostChange('package', 'install', 'a')], 'planned'],
  ])('says what became of a step: dry run %s with %j is %s', (dryRun, changes, status) => {
    expect(begin({ dryRun }).work.outcome(changes, '').status).toBe(status);
  });

  it('hands on warnings, and what is about to be added', async () => {
    const { work, warnings, remembered } = begin();
    work.warn('mind the gap');
    await work.remember({ packages: ['a'] });
    expect([warnings, remembered]).toEqual([['mind the gap'], [{ packages: ['a'] }]]);
  });

  it('writes a file once, and reverts it to what was there before', async () => {
    const { host, work } = begin();
    host.files.set(path, 'old\n');
    const written = await work.write(await work.files.read(path), 'new\n', { hasHeader: false });
    expect(written).toMatchObject({ kind: 'file', action: 'change', target: path });
    expect(written?.diff).toContain('-old\n+new');
    expect(host.files.get(path)).toBe('new\n');
    expect(await work.write(await work.files.read(path), 'new\n', { hasHeader: false })).toBeUndefined();
    const before = await work.files.before(path);
    expect(await work.revert(await work.files.read(path), before)).toMatchObject({ action: 'change' });
    expect([...host.files]).toEqual([[path, 'old\n']]);
    expect(await work.revert(await work.files.read(path), 'old\n')).toBeUndefined();
    expect(host.changes).toEqual([`write ${path}`, `revert ${path}`]);
  });

  it('says that a file is created or removed', async () => {
    const { host, work } = begin();
    const created = await work.write(await work.files.read(path), 'new\n', { hasHeader: false });
    expect(created?.action).toBe('create');
    expect((await work.revert(await work.files.read(path), null))?.action).toBe('remove');
    expect(host.files.size).toBe(0);
  });

  it('changes nothing in a dry run, and says the same', async () => {
    const { host, work } = begin({ dryRun: true });
    expect((await work.write(await work.files.read(path), 'new\n', { hasHeader: false }))?.action).toBe('create');
    host.files.set(path, 'old\n');
    expect((await work.revert(await work.files.read(path), null))?.action).toBe('remove');
    expect(host.changes).toEqual([]);
    expect(host.files.get(path)).toBe('old\n');
  });
});

describe('fileChange', () => {
  it.each([
    [null, 'new', 'create'],
    ['old', 'new', 'change'],
    ['old', null, 'remove'],
  ])('of %s to %s is %s', (before, after, action) =>
    expect(fileChange(path, before, after)).toMatchObject({ kind: 'file', target: path, action }),
  );

  it('shows no credentials', () => {
    expect(fileChange(path, null, 'password = "sesame"\n').diff).not.toContain('sesame');
  });
});
