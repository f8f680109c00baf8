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
  /** What it answers in place of doing it; undefined: it does it. `operation` is the method, and `COPY`. */
  refuse: (request: { operation: string; key: string }) => { status: number; code: string } | undefined;
}

/** An S3 server over a folder, with one bucket: s3rver, which knows multipart uploads, and does not check secrets. */
export async function startS3Server(): Promise<S3Server> {
  const dir: TempDir = await tempDir('s3');
  await mkdir(dir.path, { recursive: true });
  const started = { refuse: () => undefined } as unknown as S3Server;
  const [port, bucket] = [await freePort(), 'backups'];
  const make = () => {
    const made = new S3rver({
      address: '127.0.0.1',
      port,
      silent: true,
      directory: dir.path,
      configureBuckets: [{ name: bucket, configs: [] }],
    });
    made.middleware.unshift(async (context, next) => {
      const operation = context.get('x-amz-copy-source') ? 'COPY' : context.method;
      const refused = started.refuse({ operation, key: context.path.slice(`/${bucket}/`.length) });
      if (!refused) return next();
      // As the servers of others do, it takes all that it is sent.
      for await (const chunk of context.req) void chunk;
      context.status = refused.status;
      context.type = 'application/xml';
      context.body = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${refused.code}</Code><Message>refused</Message></Error>`;
    });
    return made;
  };
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
  Object.assign(started, {
    url: `http://127.0.0.1:${port}`,
    bucket,
    accessKeyId: 'S3RVER',
    secretAccessKey: 'S3RVER',
    crash,
    start,
    stop,
  });
  return Object.assign(started, { [Symbol.asyncDispose]: stop });
}
