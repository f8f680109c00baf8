/**
 * The flags of configure-hosts in all their combinations, on a real host that has Docker, each compared with what is
 * written down here.
 */
import { join } from 'node:path';
import type { CreateHostConfiguration } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { addAptMetadata, makeDeb } from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import {
  configureHost,
  dockerNames,
  localNames,
  out,
  registerHost,
  stateOf,
  statuses,
  tunnelOf,
} from '../support/hosts.js';

const flags = ['skipDockerImgImport', 'skipDockerInstall', 'skipImageRenaming', 'skipYumRepoInstall'] as const;
type Status = 'done' | 'skipped';
type Names = 'local' | 'upstream' | 'none';
/**
 * The flags; the steps repositories, runtime and images; names in Docker's cache; whether skipImageRenaming is warned
 * of; whether the package list is on the host.
 */
type Row = [...[boolean, boolean, boolean, boolean], ...[Status, Status, Status], Names, boolean, boolean];
const [yes, no] = [true, false];
const table: Row[] = [
  [no, no, no, no, 'done', 'done', 'done', 'local', no, yes],
  [no, no, no, yes, 'skipped', 'done', 'done', 'local', no, no],
  [no, no, yes, no, 'done', 'done', 'done', 'upstream', no, yes],
  [no, no, yes, yes, 'skipped', 'done', 'done', 'upstream', no, no],
  [no, yes, no, no, 'done', 'skipped', 'skipped', 'none', no, yes],
  [no, yes, no, yes, 'skipped', 'skipped', 'skipped', 'none', no, no],
  [no, yes, yes, no, 'done', 'skipped', 'skipped', 'none', yes, yes],
  [no, yes, yes, yes, 'skipped', 'skipped', 'skipped', 'none', yes, no],
  [yes, no, no, no, 'done', 'done', 'skipped', 'none', no, yes],
  [yes, no, no, yes, 'skipped', 'done', 'skipped', 'none', no, no],
  [yes, no, yes, no, 'done', 'done', 'skipped', 'none', yes, yes],
  [yes, no, yes, yes, 'skipped', 'done', 'skipped', 'none', yes, no],
  [yes, yes, no, no, 'done', 'skipped', 'skipped', 'none', no, yes],
  [yes, yes, no, yes, 'skipped', 'skipped', 'skipped', 'none', no, no],
  [yes, yes, yes, no, 'done', 'skipped', 'skipped', 'none', yes, yes],
  [yes, yes, yes, yes, 'skipped', 'skipped', 'skipped', 'none', yes, no],
];
const rows = table.map(([a, b, c, d, repositories, runtime, images, names, warns, hasList]) => {
  const set = flags.filter((_, index) => [a, b, c, d][index]);
  return { title: set.join(' ') || 'none', set, steps: { repositories, runtime, images }, names, warns, hasList };
});

const upstream = ['k8s.gcr.io/pause:3.2', 'quay.io/coreos/flannel:v0.14.0'];
const list = '/etc/apt/sources.list.d/airdock.list';
const started = await startLab();
if (!started.lab) process.stderr.write(`host flags: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('the flags of configure-hosts', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let host: LabHost;
  let hostId: string;
  let bundleId: string;
  /** Before Airdock came. */
  let untouched: string;

  beforeAll(async () => {
    folder = await tempDir('host-flags');
    const apt = join(folder.path, 'apt');
    await makeDeb(apt, 'lab-agent');
    await addAptMetadata(apt);
    const packages = {
      repositories: [{ name: 'release', format: 'apt', folder: apt }],
      install: { debian: ['lab-agent'] },
    };
    [du, host] = await Promise.all([Du.start({ folder: folder.path, packages }), lab.startHost()]);
    client = await du.client();
    untouched = await everythingOf();
    hostId = await registerHost(client, host, { credential: { username: 'admin', privateKey: host.privateKey } });
    bundleId = await carryIn(client, du, { images: upstream, layerBytes: 50_000 });
    await push(client, bundleId);
  });
  afterEach(async ({ task }) => {
    if (task.result?.state !== 'fail') return;
    process.stderr.write(`${du?.output}\n`);
    // The next combination begins at the beginning all the same.
    await configure({ action: 'unconfigure', bundleIds: [] });
  });
  afterAll(async () => {
    await du?.stop();
    await lab.stop();
    await folder?.remove();
  });

  const configure = (options: Partial<CreateHostConfiguration>) =>
    configureHost(client, hostId, { bundleIds: [bundleId], ...options });
  const mirrors = () => out(host, "docker info --format '{{json .RegistryConfig.Mirrors}}'");
  /** All that configure-hosts could have changed. */
  const everythingOf = async () => {
    const rest =
      "docker image ls --all --no-trunc; ls /usr/share; ls /var/lib/apt/lists | grep 127.0.0.1; ss -Hltn | awk '{print $4}' | sort";
    return [await stateOf(host), await mirrors(), await out(host, rest)].join('\n');
  };

  it('are all in the table', () => {
    expect(new Set(rows.map(({ title }) => title)).size).toBe(2 ** flags.length);
  });

  it.each(rows)('$title', async ({ set, steps, names, warns, hasList }) => {
    const { job, result } = await configure(Object.fromEntries(set.map((flag) => [flag, true])));
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    expect(statuses(result)).toEqual({ check: 'done', tunnel: 'done', verify: 'done', ...steps });
    expect(await dockerNames(host)).toEqual(
      { local: localNames(du.registryPort, upstream), upstream, none: [] }[names],
    );
    expect(result.warnings.filter((warning) => warning.startsWith('skipImageRenaming has no meaning'))).toHaveLength(
      warns ? 1 : 0,
    );
    expect(await out(host, `tail -n +2 ${list} 2>/dev/null; cat /usr/share/lab-agent 2>/dev/null || true`)).toBe(
      hasList
        ? `deb [signed-by=/etc/apt/keyrings/airdock.asc] http://127.0.0.1:${du.packagePort}/release ./\nfrom an apt repository`
        : '',
    );
    expect(JSON.parse(await mirrors())).toEqual(
      steps.runtime === 'done' ? [`http://127.0.0.1:${du.registryPort}/`] : [],
    );
    expect(await tunnelOf(client, hostId)).toMatchObject({ state: 'up', error: null });

    const { job: undone, result: taken } = await configure({ action: 'unconfigure', bundleIds: [] });
    expect(undone).toMatchObject({ state: 'succeeded', error: null });
    expect(taken.warnings).toEqual([]);
    expect(await everythingOf()).toBe(untouched);
    expect(await tunnelOf(client, hostId)).toBeUndefined();
  });
});
