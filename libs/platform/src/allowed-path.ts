import { realpath } from 'node:fs/promises';
import { join, sep } from 'node:path';

const isInside = (folder: string, file: string) => file.startsWith(folder.endsWith(sep) ? folder : folder + sep);

/** A real path within the allowed folders, or why there is none. */
export type AllowedPath =
  | { path: string; refusal?: undefined }
  | { path?: undefined; refusal: 'missing' | 'forbidden' | 'unreadable'; why?: string };

const goneCodes = new Set(['ENOENT', 'ENOTDIR', 'ENAMETOOLONG']);

/**
 * The real path of a file inside one of the folders, for a path of a request, absolute or relative to them; links that
 * lead out are not followed. Whether a file exists outside of the folders is nobody's business: then it is `forbidden`.
 */
export async function allowedPath(folders: readonly string[], path: string): Promise<AllowedPath> {
  if (path.includes('\0')) return { refusal: 'forbidden' };
  const real = await Promise.all(folders.map((folder) => realpath(folder).catch(() => undefined)));
  for (const candidate of path.startsWith(sep) ? [path] : folders.map((folder) => join(folder, path))) {
    let why: string | undefined;
    const found = await realpath(candidate).catch((error: NodeJS.ErrnoException) => {
      why = error.code;
      return undefined;
    });
    if (found && real.some((folder) => folder !== undefined && isInside(folder, found))) return { path: found };
    if (!found && folders.some((folder) => isInside(folder, join(candidate))))
      return why === undefined || goneCodes.has(why) ? { refusal: 'missing' } : { refusal: 'unreadable', why };
  }
  return { refusal: 'forbidden' };
}
