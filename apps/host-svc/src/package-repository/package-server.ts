import { lstat, mkdir, realpath, rm } from 'node:fs/promises';
import { dirname, join, posix, relative, sep } from 'node:path';
import type { RepositoryKey } from '@airdock/adapters/packages/repository-key';
import { BackgroundLoop } from '@airdock/platform/background-loop';
import { CONFIG, type Config, type PackageRepositoryConfig } from '@airdock/platform/config';
import fastifyStatic from '@fastify/static';
import { Inject, Injectable } from '@nestjs/common';
import { type FastifyInstance, type FastifyReply, fastify } from 'fastify';
import { PackageRepositoryService } from './package-repository.service.js';
import { SignedMetadata } from './signed-metadata.js';

/**
 * Serves the files of the package repositories to the tunnels of this process: no listing, nothing but GET and HEAD, nothing outside the folders. It listens on a Unix
 * socket in a folder that is closed to others, so that no other program of the machine can answer in its place.
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
    // What a killed worker with this process id has left.
    await rm(this.packages.socketPath, { force: true });
    const server = await packageServer(repositories, () => this.packages.key());
    await server.listen({ path: this.packages.socketPath });
    this.server = server;
  }

  override async beforeApplicationShutdown(): Promise<void> {
    await super.beforeApplicationShutdown();
    await this.server?.close();
  }
}

/** The files of the repositories, and their metadata signed with the key. */
export async function packageServer(repositories: readonly PackageRepositoryConfig[], key: () => Promise<RepositoryKey>): Promise<FastifyInstance> {
  const byName = new Map(repositories.map((repository) => [repository.name, { folder: repository.folder, metadata: new SignedMetadata(repository, key) }]));
  const server = fastify({ forceCloseConnections: true });
  await server.register(fastifyStatic, { serve: false, index: false, dotfiles: 'deny', cacheControl: false });
  server.addHook('onRequest', async (request, reply) => {
    if (request.method !== 'GET' && request.method !== 'HEAD') await reply.code(405).header('allow', 'GET, HEAD').send();
  });
  server.setNotFoundHandler((_, reply) => reply.code(404).send());
  server.setErrorHandler(({ statusCode = 500 }: { statusCode?: number }, _, reply) => reply.code(statusCode < 500 ? statusCode : 500).send());
  server.get('/', (_, reply) => reply.code(204).send());
  server.get<{ Params: { name: string; '*': string } }>('/:name/*', async ({ params }, reply): Promise<FastifyReply> => {
    const repository = byName.get(params.name);
    // apt asks a flat folder for `./InRelease`.
    const signed = await repository?.metadata.find(posix.normalize(params['*']));
    if (signed !== undefined) return reply.type('text/plain').send(signed);
    const found = repository && (await findFile(repository.folder, params['*']));
    return found ? reply.sendFile(found.path, found.root) : reply.code(404).send();
  });
  return server;
}

/** Links may lead to other files of the folder, as those of mirrors do, but not out of it. */
async function findFile(folder: string, path: string): Promise<{ path: string; root: string } | undefined> {
  if (path.includes('\0')) return undefined;
  try {
    const root = await realpath(folder);
    const file = await realpath(join(root, path));
    if (!file.startsWith(root + sep) || !(await lstat(file)).isFile()) return undefined;
    return { path: relative(root, file), root };
  } catch {
    return undefined;
  }
}
