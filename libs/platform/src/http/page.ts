import { AppError } from '@airdock/core/errors';
import { type FindOptionsWhere, LessThan, type Repository } from 'typeorm';
import { z } from 'zod';

/** Query of every list: newest first, `cursor` from the page before. */
/** The query of every list. */
export const PageQuery = z.strictObject({
  limit: z.coerce.number().int().min(1).max(500).default(100).describe('Items a page'),
  cursor: z.string().max(200).optional().describe('`nextCursor` of the page before'),
});
export type PageQuery = z.infer<typeof PageQuery>;

/** The schema of one page of `item`. */
export const pageOf = <T extends z.ZodType>(item: T, name: string) =>
  z
    .object({ items: z.array(item), nextCursor: z.string().optional().describe('Absent on the last page') })
    .meta({ id: name });

/** One page of a list; without `nextCursor` the last. */
export interface Page<T> {
  items: T[];
  nextCursor?: string | undefined;
}

const idPattern = /^[0-9a-f-]{36}$/;

/** The id that a cursor stands for. Throws `cursor_invalid`. */
export function cursorId(cursor: string): string {
  if (!idPattern.test(cursor)) throw new AppError('cursor_invalid');
  return cursor;
}

/**
 * One page of rows, newest first, of those that one of the conditions holds for. Ids sort by time of creation, so the
 * last id is the cursor.
 */
export async function findPage<T extends { id: string }>(
  rows: Repository<T>,
  query: PageQuery,
  where: FindOptionsWhere<T> | FindOptionsWhere<T>[] = {},
): Promise<Page<T>> {
  const before = query.cursor ? { id: LessThan(cursorId(query.cursor)) } : {};
  const conditions = [where].flat().map((one) => ({ ...(one as object), ...before }) as FindOptionsWhere<T>);
  const found = await rows.find({ where: conditions, order: { id: 'DESC' } as never, take: query.limit + 1 });
  const items = found.slice(0, query.limit);
  return { items, nextCursor: found.length > query.limit ? items.at(-1)?.id : undefined };
}

/** The row with this id. Throws `resource_not_found`. */
export async function getRow<T extends { id: string }>(rows: Repository<T>, id: string): Promise<T> {
  const row = idPattern.test(id) ? await rows.findOne({ where: { id } as FindOptionsWhere<T> }) : null;
  if (!row)
    throw new AppError('resource_not_found', {
      detail: `no ${rows.metadata.tableName.replaceAll('_', ' ')} with id ${id.slice(0, 60)}`,
    });
  return row;
}
