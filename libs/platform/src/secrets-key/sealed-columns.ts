import type { EntityMetadata } from 'typeorm';
import type { ServiceDatabase } from '../database.js';
import { IdempotencyKeyEntity } from '../http/idempotency.entity.js';
import type { SecretBox } from '../secrets.js';

/** What a change of the secrets key has done. */
export interface Resealed {
  /** Texts that were sealed with the key before, and are with the one of now. */
  resealed: number;
  /** Texts that no key opens. */
  unreadable: number;
}

const rowsAtOnce = 200;

/** The columns of an entity that hold sealed texts: by their names, as `StateService` knows them too. */
export const sealedColumnsOf = (metadata: Pick<EntityMetadata, 'columns'>): string[] =>
  metadata.columns.map(({ propertyName }) => propertyName).filter((name) => name.startsWith('sealed'));

/**
 * All sealed texts of a service: each is in a column whose name begins with `sealed`, in a row whose `id` is its
 * context.
 */
export class SealedColumns {
  constructor(
    private readonly database: ServiceDatabase,
    private readonly secrets: SecretBox,
  ) {}

  /** Seals with the key of now what is not yet, text by text; may be repeated, and broken off anywhere. */
  async reseal(): Promise<Resealed> {
    const total: Resealed = { resealed: 0, unreadable: 0 };
    for (const metadata of this.database.dataSource.entityMetadatas)
      for (const column of sealedColumnsOf(metadata)) {
        const { resealed, unreadable } = await this.resealColumn(metadata, column);
        total.resealed += resealed;
        total.unreadable += unreadable;
      }
    total.resealed += await this.forgetAnswers();
    return total;
  }

  private async resealColumn({ target }: EntityMetadata, column: string): Promise<Resealed> {
    const rows = this.database.dataSource.getRepository<Record<string, string | null>>(target);
    const total: Resealed = { resealed: 0, unreadable: 0 };
    for (let last = ''; ; ) {
      const query = rows.createQueryBuilder('row').select(['row.id', `row.${column}`]);
      const found = await query.where('row.id > :last', { last }).orderBy('row.id').take(rowsAtOnce).getMany();
      for (const { id, [column]: sealed } of found) {
        if (!id || !sealed || this.secrets.isCurrent(sealed)) continue;
        try {
          // Who has changed it meanwhile has sealed it with the key of now.
          const { affected } = await rows.update(
            { id, [column]: sealed },
            { [column]: this.secrets.reseal(sealed, id) },
          );
          total.resealed += affected ?? 0;
        } catch (error) {
          if ((error as { code?: string }).code !== 'secrets_key_invalid') throw error;
          total.unreadable += 1;
        }
      }
      if (found.length < rowsAtOnce) return total;
      last = found.at(-1)?.id ?? '';
    }
  }

  /**
   * Digests of requests cannot be made anew from themselves; without them the answers to repeated requests are of no
   * use.
   */
  private async forgetAnswers(): Promise<number> {
    const keys = this.database.dataSource.getRepository(IdempotencyKeyEntity);
    const others = keys
      .createQueryBuilder()
      .delete()
      .where('"requestDigest" NOT LIKE :current', { current: `${this.secrets.digestPrefix}%` });
    return (await others.execute()).affected ?? 0;
  }
}
