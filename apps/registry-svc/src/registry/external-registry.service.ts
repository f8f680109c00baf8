import { AppError, type Problem, toProblem } from '@airdock/core/errors';
import { whyNoRegistry } from '@airdock/oci/registry-client/registry-probe';
import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { pinUrl } from '@airdock/outbound/pinned-url';
import { CONFIG, type Config } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';

/** For the answers of a registry that somebody else runs. */
const timeoutMs = 10_000;

/** A registry of others, in mode external. */
@Injectable()
export class ExternalRegistryService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly targets: OutboundTargets,
  ) {}

  /**
   * Where the registry of mode external may be reached now; a refusal, and no address, when its name leads where it
   * must not.
   */
  async reach(url: string): Promise<{ address: string | null; refusal: Problem | null }> {
    // Whoever wrote the configuration file may name any.
    if (url === this.config.registry.externalUrl) return { address: url, refusal: null };
    try {
      return { address: await pinUrl(this.targets, url), refusal: null };
    } catch (error) {
      return {
        address: null,
        refusal: toProblem(
          error instanceof AppError
            ? error
            : new AppError('registry_unavailable', { detail: 'its name does not resolve' }),
        ),
      };
    }
  }

  /** Throws `registry_external_silent`. */
  async assertAnswering(url: string): Promise<void> {
    const { address, refusal } = await this.reach(url);
    const why = address === null ? (refusal?.detail ?? refusal?.title) : await whyNoRegistry(address, timeoutMs);
    if (why !== undefined) throw new AppError('registry_external_silent', { detail: `${new URL(url).origin}: ${why}` });
  }
}
