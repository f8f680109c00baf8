import { setTimeout as delay } from 'node:timers/promises';
import { resealSecrets } from '@airdock/clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { type ServiceName, serviceNames } from '@airdock/platform/config';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { SecretBox } from '@airdock/platform/secrets';
import { Injectable } from '@nestjs/common';
import type { SecretsKey } from './secrets-key.schema.js';

export const rotateSecretsKeyJobType = 'registry.rotate-secrets-key';

/** Between two rounds: who has sealed a text with the old key has written it by then. */
const settleMs = 5_000;

/** Exchanges the key that all services seal their secrets with. */
@Injectable()
export class SecretsKeyService {
  constructor(
    private readonly jobs: JobsService,
    private readonly secrets: SecretBox,
    private readonly clients: ServiceClients,
  ) {}

  get(): SecretsKey {
    return { fingerprint: this.secrets.fingerprint, rotating: this.secrets.keyCount > 1 };
  }

  rotate(request: JobRequest): Promise<Job> {
    return this.jobs.submit({ ...request, type: rotateSecretsKeyJobType, resource: '/v1/secrets-key' });
  }

  /**
   * The file gets the new key before the old one, so that everybody seals with the new and opens with both; then every
   * service seals what it has anew, until two rounds find nothing more; only then the old key goes. Broken off
   * anywhere, it goes on from what the file and the rows say.
   */
  @RunsJob(rotateSecretsKeyJobType, { concurrency: 1 })
  async run({ signal, progress }: JobContext): Promise<Record<string, unknown>> {
    this.secrets.beginRotation();
    let resealed = 0;
    let unreadable = 0;
    for (let quietRounds = 0; quietRounds < 2; ) {
      let ofRound = 0;
      unreadable = 0;
      for (const name of serviceNames) {
        progress({ phase: `sealing ${name}` });
        const { data } = await resealSecrets({
          client: this.clients[name satisfies ServiceName],
          signal,
          throwOnError: true,
        });
        ofRound += data.resealed;
        unreadable += data.unreadable;
      }
      resealed += ofRound;
      quietRounds = ofRound === 0 ? quietRounds + 1 : 0;
      if (quietRounds < 2) await delay(settleMs, undefined, { signal });
    }
    this.secrets.endRotation();
    return { fingerprint: this.secrets.fingerprint, resealed, unreadable };
  }
}
