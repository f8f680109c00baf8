import { Body, Controller, Inject, Post } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { Internal } from '../http/access.js';
import { Operation } from '../http/operation.js';
import { ADMIN_TOKEN } from '../platform.module.js';
import type { TokenFile } from '../token-file.js';
import type { SealedColumns } from './sealed-columns.js';
import { ResealedSecrets, RotatedToken, RotateToken } from './secrets-key.schema.js';

/** The sealed columns of all services in this process. */
export const SEALED_COLUMNS = Symbol('SEALED_COLUMNS');

/** Tells which secrets the key of now does not open, and seals them anew. */
@ApiTags('secrets')
@Controller({ version: '1' })
export class SecretsKeyController {
  constructor(
    @Inject(SEALED_COLUMNS) private readonly sealed: SealedColumns[],
    @Inject(ADMIN_TOKEN) private readonly token: TokenFile,
  ) {}

  @Post('token-rotations')
  @Operation({
    id: 'rotateToken',
    summary: 'Replace the API token; both count for a while, in all processes',
    returns: RotatedToken,
    status: 201,
  })
  rotate(@Body({ schema: RotateToken }) { keepPreviousMinutes }: RotateToken): RotatedToken {
    const until = this.token.rotate(keepPreviousMinutes * 60);
    return { tokenFile: this.token.path, previousUntil: until?.toISOString() ?? null };
  }

  @Post('secret-reseals')
  @Internal()
  @Operation({
    id: 'resealSecrets',
    summary: 'Seal what this process has with the key of now: for the rotation of the key',
    returns: ResealedSecrets,
  })
  async reseal(): Promise<ResealedSecrets> {
    const total: ResealedSecrets = { resealed: 0, unreadable: 0 };
    for (const columns of this.sealed) {
      const { resealed, unreadable } = await columns.reseal();
      total.resealed += resealed;
      total.unreadable += unreadable;
    }
    return total;
  }
}
