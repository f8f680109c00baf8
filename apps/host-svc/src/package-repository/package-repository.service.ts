import { readdir } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import type { PackageSource } from '@airdock/host/configuration/repositories-step';
import { CONFIG, type Config, type PackageRepositoryConfig } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';
import { openPackageFile, readPackageFile } from './package-file.js';
import type { PackageRepository } from './package-repository.schema.js';
import { RepositoryKey } from './repository-key.js';

type Seen = Pick<PackageRepository, 'state' | 'detail' | 'nextStep'>;

const maxKeyLength = 64 * 1024;
/** A worker that hangs answers no sooner: it does not serve. */
const answerMs = 2_000;

const makeMetadata = {
  apt: 'cd FOLDER && apt-ftparchive packages . >Packages',
  yum: 'createrepo_c FOLDER',
};

/** The package repositories of the configuration, as they are on the disk of the DU. */
@Injectable()
export class PackageRepositoryService implements PackageSource {
  private opened: Promise<RepositoryKey> | undefined;

  constructor(@Inject(CONFIG) private readonly config: Config) {}

  /** Where hosts find the repositories: their own end of the tunnel. */
  get baseUrl(): string {
    return `http://127.0.0.1:${this.config.packages.port}`;
  }

  /** Where this process serves them to its tunnels: each worker has a socket of its own. */
  get socketPath(): string {
    return join(this.socketDir, `${process.pid}.sock`);
  }

  /** What vouches for the packages; hosts get its public part over SSH. */
  key(): Promise<RepositoryKey> {
    this.opened ??= RepositoryKey.open(join(this.config.dataDir, 'packages/signing-key.asc'));
    return this.opened;
  }

  /**
   * The public keys that a repository's packages are signed with, when the configuration says that they are. Throws
   * `configuration_invalid`.
   */
  async vendorKey(name: string): Promise<string | undefined> {
    const repository = this.config.packages.repositories.find((one) => one.name === name);
    if (repository?.gpgKey === undefined) return undefined;
    const { folder, gpgKey } = repository;
    const path = join(folder, gpgKey);
    const text = (await readPackageFile(folder, gpgKey, maxKeyLength))?.content.toString('utf8') ?? '';
    if (!text.includes('-----BEGIN PGP PUBLIC KEY BLOCK-----'))
      throw new AppError('configuration_invalid', {
        detail: `airdock.packages.repositories: gpgKey of ${name}: ${path} is no armored public key`,
      });
    return text;
  }

  /** Where the workers of this machine have their sockets, each named by its process id. */
  get socketDir(): string {
    return join(this.config.dataDir, 'run/packages');
  }

  async list(): Promise<PackageRepository[]> {
    const { repositories } = this.config.packages;
    const isServed = repositories.length > 0 && (await this.isServed());
    return Promise.all(
      repositories.map(async (repository) => {
        const seen = await look(repository);
        const { name, format, folder, distributions } = repository;
        return {
          name,
          format,
          folder,
          distributions,
          url: `${this.baseUrl}/${name}`,
          ...(seen.state !== 'ready' || isServed ? seen : this.notServed()),
        };
      }),
    );
  }

  /** The workers of host-svc serve the folders, each on a socket of its own; the API may be another process. */
  private async isServed(): Promise<boolean> {
    const sockets = (await readdir(this.socketDir).catch(() => [])).map((name) => join(this.socketDir, name));
    return (await Promise.all(sockets.map(isAnswering))).includes(true);
  }

  private notServed(): Seen {
    return {
      state: 'not_served',
      detail: `no worker of host-svc answers in ${this.socketDir}`,
      nextStep: 'Start a worker of host-svc on this machine.',
    };
  }
}

/** Whether the server behind a socket answers; a connection alone also comes about with one that hangs. */
const isAnswering = (socketPath: string): Promise<boolean> =>
  new Promise((resolve) => {
    const asked = request(
      { socketPath, path: '/', method: 'HEAD', agent: false, signal: AbortSignal.timeout(answerMs) },
      (answer) => {
        answer.resume();
        resolve(true);
      },
    );
    asked.once('error', () => resolve(false)).end();
  });

async function look(repository: PackageRepositoryConfig): Promise<Seen> {
  const { folder, format, distributions } = repository;
  let files: string[];
  try {
    files = await readdir(folder);
  } catch (error) {
    return {
      state: 'folder_unreadable',
      detail: (error as Error).message,
      nextStep: 'Unpack the release there, or correct airdock.packages.repositories in the configuration.',
    };
  }
  const missing = await missingMetadata(repository);
  if (missing.length === 0) {
    const what = distributions.length > 0 ? distributions.join(', ') : 'one flat folder';
    return { state: 'ready', detail: `${format}: ${what}`, nextStep: null };
  }
  const packages = files.filter((name) => name.endsWith(format === 'apt' ? '.deb' : '.rpm')).length;
  return {
    state: 'metadata_missing',
    detail: `${missing.join(', ')} cannot be read${packages > 0 ? `, though there are ${packages} packages` : ''}`,
    nextStep:
      packages > 0 || distributions.length === 0
        ? `Make it: ${makeMetadata[format].replaceAll('FOLDER', folder)}`
        : 'Copy the whole repository, metadata included, or correct `distributions`.',
  };
}

/** The files that apt or dnf ask for first, those of them that are not there. */
async function missingMetadata({ folder, format, distributions }: PackageRepositoryConfig): Promise<string[]> {
  const missing: string[] = [];
  const places = distributions.length > 0 ? distributions : [''];
  for (const place of places) {
    const either =
      format === 'yum'
        ? [join(place, 'repodata/repomd.xml')]
        : place
          ? ['InRelease', 'Release'].map((name) => join('dists', place, name))
          : ['Packages', 'Packages.gz', 'Packages.xz', 'Packages.zst', 'Packages.bz2'];
    const found = await Promise.all(
      either.map(async (path) => {
        const file = await openPackageFile(folder, path);
        await file?.handle.close();
        return file !== undefined;
      }),
    );
    if (!found.includes(true)) missing.push(either[0] as string);
  }
  return missing;
}
