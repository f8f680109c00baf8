import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import type { SshConnection } from './connection.js';

/** Docker on a host, spoken to through SSH. */
export class DockerHost {
  constructor(
    private readonly connection: SshConnection,
    private readonly signal: AbortSignal,
  ) {}

  /** Image IDs by full reference, of everything in Docker's cache. */
  async imageIds(): Promise<Map<string, string>> {
    const output = await this.connection.run(['docker', 'image', 'ls', '--no-trunc', '--format', '{{.Repository}}:{{.Tag}} {{.ID}}'], {
      sudo: true,
      signal: this.signal,
    });
    const images = new Map<string, string>();
    for (const line of output.split('\n')) {
      const [name = '', id = ''] = line.split(' ');
      if (name && !name.includes('<none>')) images.set(formatReference(parseReference(name)), id);
    }
    return images;
  }

  /** Feeds a docker-archive to `docker load`: nothing is written on the host but what Docker keeps. */
  async load(archive: Readable): Promise<void> {
    await this.connection.run(['docker', 'load', '--quiet'], { sudo: true, stdin: archive, signal: this.signal, stallTimeoutMs: 600_000 });
  }

  /** Pulls, and returns the digest that the registry served. Throws `host_pull_failed` with Docker's own words. */
  async pull(reference: string): Promise<string> {
    const { exitCode, stdout, stderr } = await this.connection.exec(['docker', 'pull', '--quiet', reference], {
      sudo: true,
      signal: this.signal,
      stallTimeoutMs: 900_000,
    });
    if (exitCode !== 0) throw new AppError('host_pull_failed', { detail: `${reference}: ${(stderr || stdout).trim().slice(-500)}`, reference });
    const digests = JSON.parse(
      await this.connection.run(['docker', 'image', 'inspect', '--format', '{{json .RepoDigests}}', reference], { sudo: true, signal: this.signal }),
    ) as string[];
    const { registry, repository } = parseReference(reference);
    const own = digests
      .map((text) => text.split('@'))
      .find(([name = '']) => {
        const parsed = parseReference(name);
        return parsed.registry === registry && parsed.repository === repository;
      });
    if (!own?.[1]) throw new AppError('host_pull_failed', { detail: `${reference}: Docker knows no digest of it`, reference });
    return own[1];
  }
}
