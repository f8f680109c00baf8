import { existsSync } from 'node:fs';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { dirname, join, posix } from 'node:path';
import { finished } from 'node:stream';
import { BackgroundLoop } from '@airdock/platform/background-loop';
import { CONFIG, type Config, type PackageRepositoryConfig } from '@airdock/platform/config';
import { isAnswering } from '@airdock/platform/http/local-socket';
import fastifyStatic from '@fastify/static';
import { Inject, Injectable } from '@nestjs/common';
import { type FastifyInstance, type FastifyReply, fastify } from 'fastify';
import { openPackageFile } from './package-file.js';
import { PackageRepositoryService } from './package-repository.service.js';
import type { RepositoryKey } from './repository-key.js';
import { SignedMetadata } from './signed-metadata.js';

/**
 * Serves the files of the package repositories to the tunnels of this process: no listing, nothing but GET and HEAD,
 * nothing outside the folders. It listens on a Unix socket in a folder that is closed to others, so that no other
 * program of the machine can answer in its place.
 */
@Injectable()
export class PackageServer extends BackgroundLoop {
  protected readonly pauseMs = 2_000;
  private server: FastifyInstance | undefined;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly packages: PackageRepositoryService,
  ) {
    super();
  }

  protected async round(): Promise<void> {
    const { repositories } = this.config.packages;
    if (this.server || repositories.length === 0) return;
    await mkdir(dirname(this.packages.socketPath), { recursive: true, mode: 0o700 });
    await removeStaleSockets(this.packages.socketDir);
    const server = await packageServer(repositories, () => this.packages.key());
    await server.listen({ path: this.packages.socketPath });
    this.server = server;
  }

  override async beforeApplicationShutdown(): Promise<void> {
    await super.beforeApplicationShutdown();
    await this.server?.close();
  }
}

/** What killed workers have left: nobody listens there, and the process is gone, or it is this one. */
async function removeStaleSockets(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const pid = Number(/^(\d+)\.sock$/.exec(name)?.[1] ?? Number.NaN);
    const isGone =
      pid === process.pid || (pid > 0 && !existsSync(`/proc/${pid}`) && !(await isAnswering(join(folder, name))));
    if (isGone) await rm(join(folder, name), { force: true });
  }
}

/** The files of the repositories, and their metadata signed with the key. */
export async function packageServer(
  repositories: readonly PackageRepositoryConfig[],
  key: () => Promise<RepositoryKey>,
): Promise<FastifyInstance> {
  const byName = new Map(
    repositories.map((repository) => [
      repository.name,
      { folder: repository.folder, metadata: new SignedMetadata(repository, key) },
    ]),
  );
  const server = fastify({ forceCloseConnections: true });
  await server.register(fastifyStatic, { serve: false, index: false, cacheControl: false });
  server.addHook('onRequest', async (request, reply) => {
    if (request.method !== 'GET' && request.method !== 'HEAD')
      await reply.code(405).header('allow', 'GET, HEAD').send();
  });
  server.setNotFoundHandler((_, reply) => reply.code(404).send());
  server.setErrorHandler(({ statusCode = 500 }: { statusCode?: number }, _, reply) =>
    reply.code(statusCode < 500 ? statusCode : 500).send(),
  );
  server.get('/', (_, reply) => reply.code(204).send());
  server.get<{ Params: { name: string; '*': string } }>(
    '/:name/*',
    async ({ params }, reply): Promise<FastifyReply> => {
      const repository = byName.get(params.name);
      // apt asks a flat folder for `./InRelease`.
      const signed = await repository?.metadata.find(posix.normalize(params['*']));
      if (signed !== undefined) return reply.type('text/plain').send(signed);
      if (repository && (await sendFile(repository.folder, params['*'], reply))) return reply;
      return reply.code(404).send();
    },
  );
  return server;
}

/** Sends what was opened, by its descriptor: the name may lead elsewhere by now. False for what is not to be sent. */
async function sendFile(folder: string, path: string, reply: FastifyReply): Promise<boolean> {
  const file = await openPackageFile(folder, path);
  if (!file) return false;
  if (`/${file.realPath}`.includes('/.')) {
    await file.handle.close();
    return false;
  }
  finished(reply.raw, () => void file.handle.close().catch(() => undefined));
  reply.sendFile(String(file.handle.fd), '/proc/self/fd');
  return true;
}
