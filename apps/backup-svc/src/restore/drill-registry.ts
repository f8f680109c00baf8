import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { isGone } from '@airdock/core/errno';
import type { Config } from '@airdock/platform/config';
import { ProcessRegistryEngine, registrySockets } from '@airdock/registry/engine/process-engine';

/** Registries of their own for drills, one for each restore, which its id names. */
export class DrillRegistry {
  private readonly folder: string;

  constructor(private readonly config: Pick<Config, 'dataDir' | 'registry'>) {
    this.folder = join(config.dataDir, 'drills');
  }

  /** Starts an empty one. What a killed job left of it is ended and removed first. */
  async start(id: string, signal: AbortSignal) {
    const { engine, storageDir, sockets } = this.engineOf(id);
    await this.remove(id);
    try {
      await engine.start(signal);
    } catch (error) {
      await this.remove(id);
      throw error;
    }
    return { address: sockets.readWrite, storageDir };
  }

  /** Ends it and removes its files. There may be none. */
  async remove(id: string): Promise<void> {
    const { engine, socketDir } = this.engineOf(id);
    await engine.stop();
    for (const folder of [socketDir, join(this.folder, id)]) await rm(folder, { recursive: true, force: true });
  }

  /** The ids of those that have files. */
  async list(): Promise<string[]> {
    try {
      return await readdir(this.folder);
    } catch (error) {
      if (isGone(error)) return [];
      throw error;
    }
  }

  private engineOf(id: string) {
    const [stateDir, storageDir] = [join(this.folder, id, 'state'), join(this.folder, id, 'storage')];
    // The path of a socket may have 107 bytes: the random end of the id is enough.
    const socketDir = join(this.config.dataDir, 'run/drills', id.slice(-12));
    const engine = new ProcessRegistryEngine({ stateDir, storageDir, socketDir, binary: this.config.registry.binary });
    return { storageDir, socketDir, sockets: registrySockets(socketDir), engine };
  }
}
