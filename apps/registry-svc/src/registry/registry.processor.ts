import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable, Logger, type OnApplicationBootstrap, type OnApplicationShutdown } from '@nestjs/common';
import { applyJobType, RegistryService } from './registry.service.js';

/** Brings the engine to the wanted state. */
@JobType(applyJobType, 1)
export class RegistryProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly registry: RegistryService,
  ) {
    super(jobs);
  }

  protected async run({ signal, progress }: JobContext) {
    progress({ phase: 'apply', itemsTotal: 2 });
    const { mode } = await this.registry.reconcile(signal);
    progress({ phase: 'measure', itemsDone: 1 });
    await this.registry.measure();
    return { mode };
  }
}

const superviseMs = 2_000;
const measureEvery = 15;

/** Keeps the engine in the wanted state while nobody asks: after a crash of the engine, and after a restart of the machine. */
@Injectable()
export class RegistrySupervisor implements OnApplicationBootstrap, OnApplicationShutdown {
  private readonly logger = new Logger(RegistrySupervisor.name);
  private timer: NodeJS.Timeout | undefined;
  private stopped = false;
  private rounds = 0;
  private failing = false;

  constructor(private readonly registry: RegistryService) {}

  onApplicationBootstrap(): void {
    void this.supervise();
  }

  onApplicationShutdown(): void {
    this.stopped = true;
    clearTimeout(this.timer);
  }

  private async supervise(): Promise<void> {
    try {
      if (this.rounds === 0 || (await this.registry.needsReconcile())) await this.registry.reconcile();
      if (this.rounds % measureEvery === 0) await this.registry.measure();
      this.failing = false;
    } catch (error) {
      if (!this.failing) this.logger.error({ err: error }, 'the registry is not in the wanted state; trying again');
      this.failing = true;
    }
    this.rounds += 1;
    if (!this.stopped) this.timer = setTimeout(() => void this.supervise(), superviseMs);
  }
}
