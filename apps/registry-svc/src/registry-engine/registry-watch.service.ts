import { isDeepStrictEqual } from 'node:util';
import { CONFIG, type Config } from '@airdock/platform/config';
import { now } from '@airdock/platform/database';
import { type DiskReserve, isMountedReadOnly, whatIsShort } from '@airdock/platform/disk-reserve';
import type { NoticeSource } from '@airdock/platform/http/health.controller';
import { dataReserve } from '@airdock/platform/service';
import { describe, storageUsage } from '@airdock/registry/engine/process-engine';
import { Inject, Injectable, Logger } from '@nestjs/common';
import { type ForeignProcess, RegistryRowService } from '../registry/registry-row.service.js';
import { StorageService } from '../registry/storage.service.js';
import { registryEngine } from './registry-engine.service.js';

/** So many are named: somebody may start as many as he likes. */
const maxForeignProcesses = 20;

/** Of the disk of a folder that takes no more, or nothing at all. */
async function diskNotice(name: string, folder: string, reserve: DiskReserve): Promise<Record<string, string>> {
  const short = await whatIsShort(folder);
  if (short) return { [`disk:${name}`]: `full: hardly any ${short === 'bytes' ? 'byte' : 'inode'} is free` };
  if (await reserve.isGivenOut()) return { [`disk:${name}`]: 'full: what was kept in reserve is given out' };
  return (await isMountedReadOnly(folder)) ? { [`disk:${name}`]: 'mounted read-only' } : {};
}

/** What an operator should hear of: full disks, strangers among the processes, and how much the storage holds. */
@Injectable()
export class RegistryWatchService implements NoticeSource {
  private readonly logger = new Logger(RegistryWatchService.name);

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly rows: RegistryRowService,
    private readonly storage: StorageService,
  ) {}

  /** For `/readyz`: that there are strangers. Who they are is told to those with a token. */
  async notices(): Promise<Record<string, string>> {
    const row = await this.rows.load();
    const { mode, localhostError, foreignProcesses } = row;
    const data = await diskNotice('data', this.config.dataDir, dataReserve(this.config));
    if (mode !== 'local') return data;
    const has = (kind: 'listener' | 'decoy') => foreignProcesses?.some((one) => one.kind === kind);
    const storageError = (await this.storage.look(row))?.code ?? row.storageError?.code;
    return {
      ...data,
      ...(await diskNotice('storage', this.config.registry.storageDir, await this.storage.reserve())),
      ...(storageError ? { 'registry:storage': `${storageError}: nothing is written to it` } : {}),
      ...(localhostError || has('listener')
        ? { [`registry:localhost:${this.config.registry.port}`]: 'another program has the port, or part of it' }
        : {}),
      ...(has('decoy') ? { 'registry:processes': 'another program shows the arguments of the registry' } : {}),
    };
  }

  /**
   * Names the processes of others that pass for the registry: looks at every process of the machine, so a few times a
   * minute at the most.
   */
  async lookForOthers(): Promise<void> {
    const row = await this.rows.load();
    if (row.mode !== 'local') return;
    const engine = registryEngine(this.config, row);
    const found: ForeignProcess[] = [
      ...(await engine.squatters()).map(({ port, pid, uid, program }) => ({
        kind: 'listener' as const,
        port,
        pid,
        uid,
        program,
      })),
      ...(await engine.decoys()).map(({ pid, uid, program }) => ({
        kind: 'decoy' as const,
        port: null,
        pid,
        uid,
        program,
      })),
    ].slice(0, maxForeignProcesses);
    const known = row.foreignProcesses ?? [];
    const fresh = found.filter((one) => !known.some((other) => isDeepStrictEqual(one, other)));
    for (const one of fresh)
      this.logger.warn(
        one.kind === 'listener'
          ? `${describe(one)} listens on port ${one.port} of localhost`
          : `${describe(one)} shows the arguments of the registry, and is not it`,
      );
    if (found.length !== known.length || fresh.length > 0) await this.rows.note({ foreignProcesses: found });
  }

  /** Walks the storage, which takes a while: workers do it now and then, and requests answer from the row. */
  async measure(): Promise<void> {
    const row = await this.rows.load();
    // Of another disk nobody wants to know.
    if (row.mode !== 'local' || row.storageError || (await this.storage.look(row))) return;
    const storage = { ...(await storageUsage(this.config.registry.storageDir)), measuredAt: now() };
    await this.rows.note({ storage });
  }
}
