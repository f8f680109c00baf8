import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import { allowedPath } from '@airdock/platform/allowed-path';
import { CONFIG, type Config } from '@airdock/platform/config';
import { inspectEngine, installEngine } from '@airdock/registry/engine/engine-store';
import { Inject, Injectable } from '@nestjs/common';
import { registryEngine } from '../registry-engine/registry-engine.service.js';
import type { NewEngine } from './du-upgrade.schema.js';

/** The registry's program of a new release: found, looked at, and copied to where nobody changes or removes it. */
@Injectable()
export class DuUpgradeEngine {
  private readonly folder: string;

  constructor(@Inject(CONFIG) private readonly config: Config) {
    this.folder = join(config.dataDir, 'registry', 'engines');
  }

  /**
   * With the real path of the file, which is looked for this once only. Throws `bundle_path_forbidden`,
   * `bundle_not_found`, `bundle_unreadable`, `du_engine_digest_missing`.
   */
  async find(engine: NewEngine, { needsDigest }: { needsDigest: boolean }): Promise<NewEngine> {
    const { path: wanted } = fileOf(engine);
    const { path, refusal, why } = { why: undefined, ...(await allowedPath(this.config.bundleDirs, wanted)) };
    if (refusal === 'unreadable') throw new AppError('bundle_unreadable', { detail: `${wanted}: ${why}` });
    if (path === undefined)
      throw new AppError(refusal === 'missing' ? 'bundle_not_found' : 'bundle_path_forbidden', { detail: wanted });
    if (engine.digest === undefined && needsDigest) throw new AppError('du_engine_digest_missing', { detail: wanted });
    return 'binary' in engine ? { ...engine, binary: path } : { ...engine, image: path };
  }

  /** Says what it is, without running it. Throws `du_engine_digest_wrong`, and why it cannot be read. */
  async inspect(engine: NewEngine, signal: AbortSignal): Promise<{ digest: string; version: string | null }> {
    const { digest, version } = await inspectEngine(fileOf(engine), { folder: this.folder, signal });
    if (engine.digest !== undefined && engine.digest !== digest)
      throw new AppError('du_engine_digest_wrong', {
        detail: `the program of the new engine has ${digest}, not ${engine.digest}`,
      });
    return { digest, version: version ?? null };
  }

  /** Copies the program, and checks the copy before it runs for the first time. Its path. */
  async install(name: string, engine: NewEngine, signal: AbortSignal): Promise<string> {
    if (engine.digest === undefined) throw new AppError('du_engine_digest_missing', { detail: fileOf(engine).path });
    // Another program has another path: that is how the engine sees that it has to be started anew.
    const installed = await installEngine(fileOf(engine), {
      folder: this.folder,
      name,
      digest: engine.digest as Digest,
      signal,
    });
    await registryEngine(this.config, { engineBinary: installed }).version();
    return installed;
  }
}

const fileOf = (engine: NewEngine) =>
  'binary' in engine
    ? ({ kind: 'program', path: engine.binary } as const)
    : ({ kind: 'image', path: engine.image } as const);
