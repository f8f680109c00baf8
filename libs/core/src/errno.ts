/** The code of an error of the operating system, such as `ENOENT`; empty for errors without one. */
export function errnoOf(error: unknown): string {
  const code = (error as { code?: unknown } | null | undefined)?.code;
  return typeof code === 'string' ? code : '';
}

/** Whether a path leads nowhere (any more), also because a folder on its way is none. */
export const isGone = (error: unknown): boolean => ['ENOENT', 'ENOTDIR'].includes(errnoOf(error));
