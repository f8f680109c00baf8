import { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import { getBundle, getBundleDockerArchive, getRegistry, listImages } from '@airdock/adapters/api-clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { DockerHost } from '@airdock/adapters/ssh/docker-host';
import { AppError, fromProblem } from '@airdock/core/errors';
import { Injectable } from '@nestjs/common';
import type { Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostCheckService } from '../host-check/host-check.service.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import type { HostConfigurationEntity } from './host-configuration.entity.js';
import type { HostConfigurationResult, Step } from './host-configuration.schema.js';

type Configuration = Pick<HostConfigurationEntity, 'bundleIds' | 'dryRun' | 'options'>;

/** The steps of configuring one host, each of which looks first and changes only what is not as it should be. */
@Injectable()
export class ConfigureHost {
  constructor(
    private readonly hosts: HostService,
    private readonly checks: HostCheckService,
    private readonly tunnels: TunnelService,
    private readonly clients: ServiceClients,
  ) {}

  /** Notes each step in `result` as it goes, so that what was done is known also when a later step throws. */
  async run(host: Host, { bundleIds, dryRun, options }: Configuration, result: HostConfigurationResult, signal: AbortSignal): Promise<void> {
    const note = (name: Step['name'], status: Step['status'], detail: string) => void result.steps.push({ name, status, detail });
    const { data: registry } = await getRegistry({ client: this.clients.registry, throwOnError: true });
    const hasRegistry = registry.mode !== 'none';
    const hasTunnel = registry.readOnlyUrl !== null;
    const skipsImages = options.skipDockerImgImport || options.skipDockerInstall;
    if (options.skipImageRenaming && skipsImages)
      result.warnings.push(
        `skipImageRenaming has no meaning with ${options.skipDockerImgImport ? 'skipDockerImgImport' : 'skipDockerInstall'}: no images are brought`,
      );

    await using connection = await this.hosts.connect(host, signal);
    const inspection = await this.checks.inspect(host, connection, signal);
    if (inspection.isPortTaken && hasTunnel) throw new AppError('host_port_taken', { detail: 'another program listens on the registry port' });
    if (!inspection.hasDocker) throw new AppError('host_runtime_missing', { detail: 'docker gives no answer' });
    const failures = inspection.checks.filter(({ status }) => status === 'failure');
    if (failures.length > 0)
      throw new AppError('host_check_failed', { detail: failures.map(({ name, seen }) => `${name}: ${seen}`).join('; '), checks: failures });
    result.warnings.push(...inspection.checks.filter(({ status }) => status === 'warning').map(({ name, seen }) => `${name}: ${seen}`));
    note('check', 'done', `${inspection.facts.os} ${inspection.facts.osVersion}, ${inspection.checks.length} checks`);
    note('repositories', 'skipped', options.skipYumRepoInstall ? 'skipYumRepoInstall' : 'the DU serves no package repositories');
    note('runtime', options.skipDockerInstall ? 'skipped' : 'unchanged', `Docker ${inspection.facts.dockerVersion} of the host`);

    const wasUp = (await this.tunnels.find(host.id))?.state === 'up';
    if (!hasTunnel)
      note('tunnel', 'skipped', hasRegistry ? 'the registry is external: the host reaches it by itself' : 'no registry: privateRegistryType is none');
    else if (dryRun) note('tunnel', wasUp ? 'unchanged' : 'planned', `127.0.0.1 of the host to ${registry.readOnlyUrl}`);
    else {
      const { hostPort, target } = await this.tunnels.ensureUp(host.id, signal);
      note('tunnel', wasUp ? 'unchanged' : 'done', `127.0.0.1:${hostPort} leads to ${target}`);
    }

    const docker = new DockerHost(connection, signal);
    if (skipsImages) note('images', 'skipped', options.skipDockerImgImport ? 'skipDockerImgImport' : 'skipDockerInstall');
    else if (bundleIds.length === 0) note('images', 'skipped', 'no bundles were named');
    else await this.warm(docker, `linux/${inspection.facts.architecture}`, bundleIds, hasRegistry && !options.skipImageRenaming, dryRun, note, signal);

    if (dryRun) return;
    if (hasTunnel) await this.verify(docker, `linux/${inspection.facts.architecture}`, note);
    await this.hosts.saveConfigured(host.id, options);
  }

  /** Brings the images of the bundles into Docker's cache; what is there under its name with its ID is not sent again. */
  private async warm(
    docker: DockerHost,
    platform: string,
    bundleIds: string[],
    rename: boolean,
    dryRun: boolean,
    note: (name: Step['name'], status: Step['status'], detail: string) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const there = await docker.imageIds();
    for (const id of bundleIds) {
      const { data: bundle } = await getBundle({ client: this.clients.image, path: { id }, throwOnError: true });
      const missing = bundle.images.filter(({ names, localReferences, imageIds }) =>
        (rename ? localReferences : names).some((name) => !imageIds.includes(there.get(name) ?? '')),
      );
      const what = `${missing.length} of ${bundle.images.length} images of ${bundle.name}, ${rename ? 'local' : 'upstream'} names`;
      if (missing.length === 0) {
        note('images', 'unchanged', what);
        continue;
      }
      if (dryRun) {
        note('images', 'planned', what);
        continue;
      }
      const { data } = await getBundleDockerArchive({
        client: this.clients.image,
        path: { id },
        // Names travel in the URL, so only few are named; else the whole bundle comes, and Docker skips the layers that it has.
        query: {
          platform,
          names: rename ? 'local' : 'upstream',
          ...(missing.length <= 50 ? { image: missing.flatMap(({ names }) => names.slice(0, 1)) } : {}),
        },
        parseAs: 'stream',
        signal,
        throwOnError: true,
      });
      await docker.load(Readable.fromWeb(data as unknown as ReadableStream));
      note('images', 'done', what);
    }
  }

  /** A real pull through the tunnel, by digest: of the smallest image, since the way is what is tested. */
  private async verify(docker: DockerHost, platform: string, note: (name: Step['name'], status: Step['status'], detail: string) => void): Promise<void> {
    const { data } = await listImages({ client: this.clients.image, query: { limit: 500 }, throwOnError: true });
    const [smallest] = data.items
      .filter(({ platforms }) => platforms.some((own) => own === platform || own.startsWith(`${platform}/`)))
      .sort((a, b) => a.sizeBytes - b.sizeBytes);
    const [local] = smallest?.localReferences ?? [];
    if (!smallest || !local) return note('verify', 'skipped', `the catalogue has no image for ${platform} yet`);
    const name = local.slice(0, local.lastIndexOf(':'));
    const pull = await this.checks.pullOne(docker, `${name}@${smallest.digest}`);
    // The way is what is tested; an image that vanished from the registry is another matter.
    if (pull.error?.code === 'image_not_found') return note('verify', 'skipped', `${name} is no longer in the registry`);
    if (pull.error) throw fromProblem(pull.error);
    note('verify', 'done', `the host pulled ${name}@${smallest.digest}`);
  }
}
