import { mkdir } from 'node:fs/promises';
import S3rver from 's3rver';
import { freePort, type TempDir, type TestServer, tempDir } from './servers.js';

export interface S3Server extends TestServer {
  bucket: string;
  accessKeyId: string;
  secretAccessKey: string;
  /** Stops answering; `start` goes on with what was there. */
  crash(): Promise<void>;
  start(): Promise<void>;
}

/** An S3 server over a folder, with one bucket: s3rver, which knows multipart uploads, and does not check secrets. */
export async function startS3Server(): Promise<S3Server> {
  const dir: TempDir = await tempDir('s3');
  await mkdir(dir.path, { recursive: true });
  const [port, bucket] = [await freePort(), 'backups'];
  const make = () => new S3rver({ address: '127.0.0.1', port, silent: true, directory: dir.path, configureBuckets: [{ name: bucket, configs: [] }] });
  let server = make();
  await server.run();
  const crash = () => server.close();
  const stop = async () => {
    await crash();
    await dir.remove();
  };
  const start = async () => {
    server = make();
    await server.run();
  };
  // The only pair that it knows.
  return { url: `http://127.0.0.1:${port}`, bucket, accessKeyId: 'S3RVER', secretAccessKey: 'S3RVER', crash, start, stop, [Symbol.asyncDispose]: stop };
}
