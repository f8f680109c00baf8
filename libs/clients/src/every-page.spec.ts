import { describe, expect, it, vi } from 'vitest';
import { everyPage } from './every-page.js';

const pages: Record<string, { items: number[]; nextCursor?: string }> = {
  '': { items: [1, 2], nextCursor: 'a' },
  a: { items: [], nextCursor: 'b' },
  b: { items: [3] },
};
const list = () =>
  vi.fn(async ({ cursor = '' }: { limit: number; cursor?: string }) => ({ data: pages[cursor] ?? { items: [] } }));

describe('every page of a list', () => {
  it('gives all items in their order, also those after an empty page', async () => {
    const asked = list();
    const items: number[] = [];
    for await (const item of everyPage(asked)) items.push(item);
    expect(items).toEqual([1, 2, 3]);
    expect(asked.mock.calls).toEqual([[{ limit: 500 }], [{ limit: 500, cursor: 'a' }], [{ limit: 500, cursor: 'b' }]]);
  });

  it('asks for no page that nobody reads', async () => {
    const asked = list();
    for await (const item of everyPage(asked)) if (item === 2) break;
    expect(asked).toHaveBeenCalledTimes(1);
  });

  it('ends with what the list throws', async () => {
    const items = everyPage(async () => Promise.reject(new Error('away')));
    await expect(items.next()).rejects.toThrow('away');
  });
});
