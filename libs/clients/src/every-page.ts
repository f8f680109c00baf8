/** A list of the client, of which `limit` and `cursor` choose a page. */
export type PagedList<T> = (page: {
  limit: number;
  cursor?: string;
}) => Promise<{ data: { items: T[]; nextCursor?: string } }>;

/** At most so many items come in one answer. */
const limit = 500;

/**
 * All items of a list of another service, page after page; whoever has enough just stops. Throws what the list throws.
 *
 * @example
 * ```ts
 * for await (const image of everyPage((page) => listImages({ client, query: page, throwOnError: true })))
 * ```
 */
export async function* everyPage<T>(list: PagedList<T>): AsyncGenerator<T, void, undefined> {
  let cursor: string | undefined;
  do {
    const { data } = await list({ limit, ...(cursor && { cursor }) });
    yield* data.items;
    cursor = data.nextCursor;
  } while (cursor);
}
