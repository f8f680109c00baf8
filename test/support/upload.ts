import { open } from 'node:fs/promises';
import { basename } from 'node:path';

const chunkBytes = 8 * 1024 * 1024;

/** Uploads a file by the tus protocol in parts, and returns the upload's id. */
export async function upload(url: string, token: string, file: string): Promise<string> {
  await using handle = await open(file);
  const { size } = await handle.stat();
  const headers = { authorization: `Bearer ${token}`, 'tus-resumable': '1.0.0' };
  const metadata = `filename ${Buffer.from(basename(file)).toString('base64')}`;
  const created = await fetch(`${url}/v1/uploads`, {
    method: 'POST',
    headers: { ...headers, 'upload-length': String(size), 'upload-metadata': metadata },
  });
  if (created.status !== 201) throw new Error(`upload refused: ${created.status} ${await created.text()}`);
  const location = new URL(created.headers.get('location') ?? '', url).href;
  for (let offset = 0; offset < size; ) {
    const { buffer, bytesRead } = await handle.read(
      Buffer.alloc(Math.min(chunkBytes, size - offset)),
      0,
      undefined,
      offset,
    );
    const sent = await fetch(location, {
      method: 'PATCH',
      headers: { ...headers, 'upload-offset': String(offset), 'content-type': 'application/offset+octet-stream' },
      body: buffer.subarray(0, bytesRead),
    });
    if (sent.status !== 204) throw new Error(`part refused: ${sent.status} ${await sent.text()}`);
    offset = Number(sent.headers.get('upload-offset'));
  }
  return location.split('/').at(-1) ?? '';
}
