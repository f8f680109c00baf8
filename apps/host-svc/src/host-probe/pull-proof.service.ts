import type { Registry } from '@airdock/clients/generated/types.gen';
import { type AppError, fromProblem } from '@airdock/core/errors';
import type { RunsWhere } from '@airdock/core/oci/runs';
import type { ConfigurationWork } from '@airdock/host/configuration/configuration-work';
import { ContainerdHost } from '@airdock/host/runtime/containerd-host';
import { DockerHost } from '@airdock/host/runtime/docker-host';
import type { RuntimeHost } from '@airdock/host/runtime/runtime-host';
import { type StepOutcome, skipped } from '@airdock/host/work/host-work';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { Injectable } from '@nestjs/common';
import type { Host } from '../host/host.schema.js';
import { HostImageService } from '../host-image/host-image.service.js';
import { HostProbe } from './host-probe.service.js';

const tryMs = 180_000;
const besideCri =
  'images were pulled by ctr, not through the CRI as the kubelet does: log in as root, or install crictl or a curl with HTTP/2, to have that tried';

/** Proves that a host pulls through its tunnel: its runtime pulls a small image by digest. */
@Injectable()
export class PullProof {
  constructor(
    private readonly probe: HostProbe,
    private readonly images: HostImageService,
  ) {}

  /**
   * Pulls the smallest image, or the next one where that cannot be pulled: the way is to be proved, and not an image.
   * Each is remembered before it is pulled. Throws why the first could not be pulled where none could.
   */
  async prove(
    work: ConfigurationWork,
    runtime: RuntimeHost,
    where: RunsWhere,
    registry: Registry,
  ): Promise<StepOutcome<'done' | 'skipped'>> {
    const candidates = await this.images.listSmallest(where);
    if (candidates.length === 0) return skipped(`the catalogue has no image that runs on ${where.platform} yet`);
    let first: AppError | undefined;
    const failures: string[] = [];
    const deadline = Date.now() + tryMs;
    for (const reference of candidates) {
      if (first && Date.now() > deadline) break;
      await work.remember({ images: [reference] });
      const { error } = await this.pull(runtime, reference, registry);
      if (!error) {
        if (runtime instanceof ContainerdHost && runtime.isBesideCri) work.warn(besideCri);
        for (const why of failures) work.warn(`not pulled, though another image was: ${why}`);
        return pulled(reference);
      }
      failures.push(error.detail ?? error.title);
      // An image that has left the registry says nothing of the way.
      if (error.code === 'image_not_found') continue;
      if (error.code !== 'host_pull_failed') throw fromProblem(error);
      first ??= fromProblem(error);
    }
    if (first) throw first;
    return skipped(`no longer in the registry: ${candidates.join(', ')}`);
  }

  /**
   * The same while the host is inspected, which holds when nothing is changed afterwards. Only an image that the host
   * has is pulled, so that nothing gets there before the checks have passed. Undefined where the host has none, or could
   * not pull it.
   */
  async proveEarly(
    { facts }: Host,
    connection: SshConnection,
    registry: Registry,
    signal: AbortSignal,
  ): Promise<StepOutcome<'done'> | undefined> {
    if (!facts) return undefined;
    try {
      const docker = new DockerHost(connection, signal);
      const runtime = { name: 'docker' as const, version: facts.dockerVersion ?? undefined };
      for (const reference of await this.images.listSmallest({ platform: `linux/${facts.architecture}`, runtime })) {
        if (!(await docker.has(reference))) continue;
        return (await this.pull(docker, reference, registry)).error ? undefined : pulled(reference);
      }
      return undefined;
    } catch {
      // Whatever is wrong is also in the way of the inspection beside this, or of `prove`, which throw it.
      return undefined;
    }
  }

  private async pull(runtime: RuntimeHost, reference: string, registry: Registry) {
    return this.probe.pull(runtime, reference, await this.probe.digestsOf([reference], registry));
  }
}

const pulled = (reference: string): StepOutcome<'done'> => ({
  status: 'done',
  detail: `the host pulled ${reference}`,
  changes: [],
});
