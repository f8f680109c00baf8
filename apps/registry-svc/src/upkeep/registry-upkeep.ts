import { BackgroundLoop } from '@airdock/platform/background-loop';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Injectable } from '@nestjs/common';
import { GarbageCollectionService } from '../garbage-collection/garbage-collection.service.js';
import { applyJobType, RegistryService } from '../registry/registry.service.js';
import { RegistryEngineService } from '../registry-engine/registry-engine.service.js';
import { RegistryWatchService } from '../registry-engine/registry-watch.service.js';

const measureEvery = 30;
const askEvery = 5;
const lookEvery = 30;

/**
 * Keeps the engine and its storage in order while nobody asks: after a crash of the engine or of a collection, and
 * after a restart of the machine.
 */
@Injectable()
export class RegistryUpkeep extends BackgroundLoop {
  protected readonly pauseMs = 2_000;
  private rounds = 0;

  constructor(
    private readonly registry: RegistryService,
    private readonly engine: RegistryEngineService,
    private readonly watch: RegistryWatchService,
    private readonly collections: GarbageCollectionService,
  ) {
    super();
  }

  /** Brings the engine to the wanted state. */
  @RunsJob(applyJobType, { concurrency: 1 })
  async apply({ signal, progress }: JobContext): Promise<Record<string, unknown>> {
    progress({ phase: 'apply', itemsTotal: 2 });
    await this.collections.recover();
    const { mode } = await this.engine.reconcile(signal);
    await this.registry.assertStorage();
    progress({ phase: 'measure', itemsDone: 1 });
    await this.watch.measure();
    return { mode };
  }

  protected async round(): Promise<void> {
    const count = this.rounds++;
    await this.collections.recover();
    if (count === 0 || (await this.engine.needsReconcile(count % askEvery === 0))) await this.engine.reconcile();
    if (count % measureEvery === 0) await this.watch.measure();
    if (count % lookEvery === 1) await this.watch.lookForOthers();
  }
}
