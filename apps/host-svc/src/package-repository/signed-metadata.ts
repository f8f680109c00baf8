import { createHash } from 'node:crypto';
import { type ReleaseFile, renderRelease, withoutSignature } from '@airdock/core/host/apt-release';
import type { PackageRepositoryConfig } from '@airdock/platform/config';
import { openPackageFile, readPackageFile } from './package-file.js';
import type { RepositoryKey } from './repository-key.js';

const maxBytes = 64 * 1024 * 1024;
const indexNames = ['Packages', 'Packages.gz', 'Packages.xz', 'Packages.zst', 'Packages.bz2'];

/**
 * The metadata of a package repository as hosts get it: signed by the DU, whoever else has signed it. The folder of the
 * release stays as it is. What was signed is kept until a file that it speaks of changes.
 */
export class SignedMetadata {
  private readonly made = new Map<string, { of: string; content: string }>();

  constructor(
    private readonly repository: PackageRepositoryConfig,
    private readonly key: () => Promise<RepositoryKey>,
  ) {}

  /**
   * The content of a file below the repository; undefined for one that is not made here, or whose source is missing.
   */
  async find(path: string): Promise<string | undefined> {
    const { format, distributions } = this.repository;
    const isDistribution = (name: string | undefined) =>
      distributions.length === 0 ? name === undefined : name !== undefined && distributions.includes(name);
    if (format === 'yum') {
      const [file, release] = /^(?:([^/]+)\/)?repodata\/repomd\.xml\.asc$/.exec(path) ?? [];
      return file && isDistribution(release) ? this.ofRepomd(path.slice(0, -'.asc'.length)) : undefined;
    }
    const [, suite, name] = /^(?:dists\/([^/]+)\/)?(InRelease|Release|Release\.gpg)$/.exec(path) ?? [];
    if (!name || !isDistribution(suite)) return undefined;
    return suite === undefined ? this.ofFlatFolder(name) : this.ofSuite(suite, name);
  }

  private async ofRepomd(path: string): Promise<string | undefined> {
    return this.signed(path, [path], async () => {
      const file = await this.read(path);
      return file && (await (await this.key()).signDetached(file.content));
    });
  }

  /** The release's own `Release`, without the signature that nobody here has the key for. */
  private async ofSuite(suite: string, name: string): Promise<string | undefined> {
    const sources = ['InRelease', 'Release'].map((file) => `dists/${suite}/${file}`);
    return this.signed(`${suite}/${name}`, sources, async () => {
      for (const source of sources) {
        const file = await this.read(source);
        if (file) return this.sign(withoutSignature(file.content.toString('utf8')), name);
      }
      return undefined;
    });
  }

  /** A flat folder needs no `Release` of its own: what its index files are is what is to be signed. */
  private async ofFlatFolder(name: string): Promise<string | undefined> {
    return this.signed(name, indexNames, async () => {
      const files: ReleaseFile[] = [];
      let newest = 0;
      for (const path of indexNames) {
        const file = await this.read(path);
        if (!file) continue;
        const { content, status } = file;
        files.push({ path, sizeBytes: content.byteLength, sha256: createHash('sha256').update(content).digest('hex') });
        newest = Math.max(newest, status.mtimeMs);
      }
      return files.length === 0
        ? undefined
        : this.sign(renderRelease(this.repository.name, files, new Date(newest)), name);
    });
  }

  private async sign(release: string, name: string): Promise<string> {
    if (name === 'Release') return release;
    const key = await this.key();
    return name === 'InRelease' ? key.clearSign(release) : key.signDetached(Buffer.from(release));
  }

  private async signed(
    name: string,
    sources: string[],
    make: () => Promise<string | undefined>,
  ): Promise<string | undefined> {
    const of = JSON.stringify(await Promise.all(sources.map((path) => this.stampOf(path))));
    const known = this.made.get(name);
    if (known?.of === of) return known.content;
    const content = await make();
    if (content !== undefined) this.made.set(name, { of, content });
    return content;
  }

  private async stampOf(path: string): Promise<string> {
    const file = await openPackageFile(this.repository.folder, path);
    if (!file) return '';
    await file.handle.close();
    const { ino, size, mtimeMs, ctimeMs } = file.status;
    return `${ino} ${size} ${mtimeMs} ${ctimeMs}`;
  }

  private read(path: string): ReturnType<typeof readPackageFile> {
    return readPackageFile(this.repository.folder, path, maxBytes);
  }
}
