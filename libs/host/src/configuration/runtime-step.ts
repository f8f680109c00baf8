import { renderHostsToml, setHostsDir } from '@airdock/core/container-runtime/containerd-config';
import {
  hasMirror,
  isFirstMirror,
  mergeDaemonJson,
  unmergeDaemonJson,
} from '@airdock/core/container-runtime/daemon-json';
import { AppError } from '@airdock/core/errors';
import { isOwn } from '@airdock/core/host/host-file';
import { repositoriesFor } from '@airdock/core/host/package-list';
import { pollUntil } from '@airdock/core/poll-until';
import { type Activation, activateFile, containerdActivation } from '../runtime/activate-file.js';
import { ContainerdHost, configToml, majorOf } from '../runtime/containerd-host.js';
import { DockerHost } from '../runtime/docker-host.js';
import type { RuntimeHost, RuntimeName } from '../runtime/runtime-host.js';
import type { HostFile } from '../system/host-files.js';
import { fileChange, type HostChange, hostChange, type StepOutcome, type StepStatus } from '../work/host-work.js';
import type { ConfigurationWork, SiteSettings } from './configuration-work.js';
import { installPackages } from './repositories-step.js';

/** The configuration file of Docker's daemon. */
export const daemonJson = '/etc/docker/daemon.json';
const startMs = 30_000;
/** Docker takes new mirrors over within moments of a reload. */
const lookPauseMs = 300;
const reloadMs = 3_000;

/** The outcome of the step, and the runtime to go on with. */
export interface RuntimeOutcome extends StepOutcome<StepStatus | 'skipped'> {
  /** Undefined where it would only be installed by a run that is not a dry one. */
  runtime: RuntimeHost | undefined;
}

/**
 * The host has a container runtime that pulls through the tunnel: Docker is installed where there is none, its or
 * containerd's configuration is merged. Throws `host_runtime_missing`, `host_packages_failed`, `host_file_refused`, and
 * `host_runtime_failed` after the old configuration was put back.
 */
export async function configureRuntime(work: ConfigurationWork): Promise<RuntimeOutcome> {
  const { facts, wishes } = work;
  const name = chooseRuntime(work);
  const version = facts[name].version;
  if (wishes.skipDockerInstall) {
    if (!version)
      throw new AppError('host_runtime_missing', {
        detail: `${name} gives no answer, and skipDockerInstall expects it`,
      });
    return {
      status: 'skipped',
      detail: `skipDockerInstall; ${name} ${version} of the host`,
      changes: [],
      runtime: runtimeOf(work, name),
    };
  }
  return name === 'docker' ? configureDocker(work) : configureContainerd(work);
}

/** The runtime that is wanted of a host, or fits what it has. */
export function chooseRuntime({ facts, wishes }: Pick<ConfigurationWork, 'facts' | 'wishes'>): RuntimeName {
  if (wishes.containerRuntime) return wishes.containerRuntime;
  return !facts.docker.isInstalled && facts.containerd.version ? 'containerd' : 'docker';
}

/** The runtime of a host that is as it should be, or is only looked at. */
export function runtimeOf(
  { connection, signal }: Pick<ConfigurationWork, 'connection' | 'signal'>,
  name: RuntimeName,
): RuntimeHost {
  return name === 'docker' ? new DockerHost(connection, signal) : new ContainerdHost(connection, signal);
}

async function configureDocker(work: ConfigurationWork): Promise<RuntimeOutcome> {
  const { site, dryRun, facts, system, files } = work;
  const docker = new DockerHost(work.connection, work.signal);
  const changes: HostChange[] = [];
  const isThere = facts.docker.version !== undefined;
  if (!facts.docker.isInstalled) changes.push(...(await installDocker(work)));
  const isUp = isThere || (!dryRun && !facts.docker.isInstalled && (await docker.mirrors()) !== undefined);
  if (!isUp) {
    changes.push(hostChange('service', 'start', 'docker'));
    if (!dryRun) {
      const complaint = await system.service('start', 'docker');
      if (
        !(await pollUntil(
          { everyMs: lookPauseMs, timeoutMs: complaint === undefined ? startMs : 0 },
          async () => (await docker.mirrors()) !== undefined,
        ))
      )
        throw new AppError('host_runtime_missing', {
          detail: `docker does not start: ${complaint ?? 'it gives no answer'}`,
        });
    }
  }
  // Without flat names nothing in the local registry has the names that Docker asks a mirror for.
  const mirror = work.hasTunnel && site.naming.includes('flat') ? `http://127.0.0.1:${site.registry.port}` : undefined;
  if (mirror) {
    const before = await files.read(daemonJson);
    const text = mergeDaemonJson(before.text, mirror);
    if (text !== before.text) changes.push(fileChange(before.path, before.text, text));
    // The file may say it, and the daemon not: it was started before that, or reads another one.
    const isEffective = async () => isFirstMirror((await docker.mirrors()) ?? [], mirror);
    if (text !== before.text || before.isPending || (isUp && !(await isEffective()))) {
      if (dryRun) changes.push(hostChange('service', 'reload', 'docker'));
      else {
        changes.push(
          await activate(work, before, text, {
            service: 'docker',
            hasHeader: false,
            takeOver: () => takeOver(docker, (mirrors) => isFirstMirror(mirrors, mirror)),
            isUp: async () => (await docker.mirrors()) !== undefined,
          }),
        );
        await docker.assertInForce(mirror);
      }
    }
  }
  const version = isThere ? `Docker ${facts.docker.version} of the host` : 'Docker';
  return {
    ...work.outcome(changes, mirror ? `${version}, with ${mirror} as its first mirror` : version),
    runtime: isThere || !dryRun ? docker : undefined,
  };
}

/** Installs the packages that the configuration says make Docker. Throws `host_runtime_missing` where it says none. */
async function installDocker(work: ConfigurationWork): Promise<HostChange[]> {
  const { site, facts, wishes, system, dryRun } = work;
  const { family, distribution } = facts;
  const names = family ? site.packages.docker[family] : [];
  const missing = (why: string) =>
    new AppError('host_runtime_missing', { detail: `docker gives no answer, and it cannot be installed: ${why}` });
  if (!family) throw missing('the operating system is of no known family');
  if (names.length === 0) throw missing(`airdock.packages.docker.${family} names no packages`);
  const onlyAirdock = !wishes.skipYumRepoInstall;
  if (
    onlyAirdock &&
    (!work.hasTunnel || repositoriesFor(site.packages.repositories, family, distribution).length === 0)
  )
    throw missing(`the DU has no package repository for this host (${family} ${distribution})`);
  const absent = await system.missingPackages(family, names);
  if (absent.length > 0 && !dryRun) {
    if (onlyAirdock) await system.refreshLists(family);
    await installPackages(work, absent, onlyAirdock);
  }
  return absent.map((name) => hostChange('package', 'install', name));
}

/** Docker takes its mirrors over without a restart, unless the rest of the file keeps it from that. */
async function takeOver(docker: DockerHost, isDone: (mirrors: string[]) => boolean): Promise<boolean> {
  await docker.reload();
  const isOver = await pollUntil({ everyMs: lookPauseMs, timeoutMs: reloadMs }, async () => {
    const mirrors = await docker.mirrors();
    return mirrors !== undefined && isDone(mirrors);
  });
  return isOver === true;
}

const localRegistryOf = ({ registry }: SiteSettings): string => `localhost:${registry.port}`;

/** What containerd has a `hosts.toml` for, and where. */
function hostsTomls(site: SiteSettings, hostsDir: string): { upstreams: string[]; paths: string[] } {
  const upstreams = [...site.mirroredUpstreams, localRegistryOf(site)];
  return { upstreams, paths: upstreams.map((upstream) => `${hostsDir}/${upstream}/hosts.toml`) };
}

async function configureContainerd(work: ConfigurationWork): Promise<RuntimeOutcome> {
  const { site, dryRun, facts, files } = work;
  const { version } = facts.containerd;
  if (!version) throw new AppError('host_runtime_missing', { detail: 'containerd gives no answer to ctr' });
  const detail = `containerd ${version} of the host`;
  if (!work.hasTunnel)
    return { ...work.outcome([], detail), runtime: new ContainerdHost(work.connection, work.signal) };
  const before = await files.read(configToml);
  const { text, hostsDir } = setHostsDir(before.text, majorOf(version));
  const containerd = new ContainerdHost(work.connection, work.signal, hostsDir);
  // A plugin that has failed may do so for what is about to be put right; one that is switched off stays so.
  if ((await containerd.criState()) !== 'error') await containerd.assertCri();
  const changes: HostChange[] = [];
  const localRegistry = localRegistryOf(site);
  // These are read at every pull.
  const { upstreams, paths } = hostsTomls(site, hostsDir);
  const found = await files.readAll(paths);
  for (const [index, file] of found.entries()) {
    const wanted = renderHostsToml(upstreams[index] as string, localRegistry, site.registry.port, site.naming);
    const written = await work.write(file, wanted, { hasHeader: true });
    if (written) changes.push(written);
  }
  if (text !== before.text) changes.push(fileChange(before.path, before.text, text));
  // The file may say it, and containerd not know it: it was started before that.
  const isRestarted = text !== before.text || before.isPending || (await containerd.isBehindFiles());
  if (isRestarted) {
    if (dryRun) changes.push(hostChange('service', 'restart', 'containerd'));
    else {
      changes.push(await activate(work, before, text, await containerdActivation(containerd)));
    }
  }
  if (!dryRun || !isRestarted) await containerd.assertInForce();
  return { ...work.outcome(changes, `${detail}, pulls by ${hostsDir}`), runtime: containerd };
}

/**
 * Removes Airdock's part of the configuration of a runtime; what others have changed there since stays. `isThere` is
 * false when the runtime itself was removed. Throws `host_file_refused` when a file cannot be told apart from what others
 * made of it, and `host_runtime_failed`.
 */
export async function unconfigureRuntime(
  work: ConfigurationWork,
  name: RuntimeName,
  isThere: boolean,
): Promise<StepOutcome> {
  const { files, site } = work;
  const changes: (HostChange | undefined)[] = [];
  const docker = new DockerHost(work.connection, work.signal);
  const mirror = `http://127.0.0.1:${site.registry.port}`;
  let makeKnown: (() => Promise<boolean>) | undefined;
  let main: HostChange | undefined;
  if (name === 'docker') {
    const file = await files.read(daemonJson);
    if (file.text !== null)
      main = await work.revert(file, unmergeDaemonJson(file.text, await files.before(daemonJson), mirror));
    makeKnown = () => takeOver(docker, (mirrors) => !hasMirror(mirrors, mirror));
  } else {
    const file = await files.read(configToml);
    const kept = await files.before(configToml);
    const major = majorOf(work.facts.containerd.version);
    const { hostsDir } = setHostsDir(file.text, major);
    for (const own of (await files.readAll(hostsTomls(site, hostsDir).paths)).filter(({ text }) => isOwn(text)))
      changes.push(await work.revert(own, await files.before(own.path)));
    if (kept !== null && setHostsDir(kept, major).text !== file.text)
      throw new AppError('host_file_refused', {
        detail: `${configToml} was changed after Airdock did; what was there before is in ${configToml}.airdock-before`,
      });
    if (kept !== null || isOwn(file.text)) main = await work.revert(file, kept);
  }
  if (main && isThere) {
    const action = makeKnown ? 'reload' : 'restart';
    changes.push(main, hostChange('service', action, name));
    if (!work.dryRun && !(await makeKnown?.())) {
      const complaint = await work.system.service('restart', name);
      if (complaint !== undefined)
        throw new AppError('host_runtime_failed', {
          detail: `${name} did not start with its old ${main.target}: ${complaint}`,
        });
    }
  } else changes.push(main);
  return work.outcome(
    changes.filter((one) => one !== undefined),
    name,
  );
}

async function activate(
  { files, system }: ConfigurationWork,
  before: HostFile,
  text: string,
  activation: Activation,
): Promise<HostChange> {
  return hostChange('service', await activateFile(files, system, before, text, activation), activation.service);
}
