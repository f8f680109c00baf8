import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { commandError } from './command-error.js';
import type { SshConnection } from './connection.js';
import type { RuntimeHost } from './runtime-host.js';

const pullScript = `docker pull --quiet "$1" >/dev/null && docker image inspect --format '{{json .RepoDigests}}' "$1"`;

/** Docker on a host. */
export class DockerHost implements RuntimeHost {
  readonly name = 'docker';

  constructor(
    private readonly connection: SshConnection,
    private readonly signal: AbortSignal,
  ) {}

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

  async load(archive: Readable): Promise<void> {
    await this.connection.run(['docker', 'load', '--quiet'], { sudo: true, stdin: archive, signal: this.signal, stallTimeoutMs: 600_000 });
  }

  async pull(reference: string): Promise<string> {
    const { exitCode, stdout, stderr } = await this.connection.exec(['sh', '-c', pullScript, 'sh', reference], {
      sudo: true,
      signal: this.signal,
      stallTimeoutMs: 900_000,
    });
    if (exitCode !== 0) throw commandError('host_pull_failed', { detail: `${reference}: ${(stderr || stdout).trim().slice(-500)}`, reference });
    const digests = JSON.parse(stdout) as string[];
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

  async tag(reference: string, name: string): Promise<void> {
    await this.connection.run(['docker', 'image', 'tag', reference, name], { sudo: true, signal: this.signal });
  }

  async remove(reference: string): Promise<boolean> {
    const { exitCode, stderr } = await this.connection.exec(['docker', 'image', 'rm', reference], { sudo: true, signal: this.signal });
    if (exitCode === 0 || /no such image/i.test(stderr)) return true;
    if (/conflict|in use|is using/i.test(stderr)) return false;
    throw new AppError('host_command_failed', { detail: `docker image rm ${reference}: ${stderr.trim().slice(-300)}`, exitCode });
  }

  /** The registry mirrors that the running daemon knows; undefined when it does not answer. */
  async mirrors(): Promise<string[] | undefined> {
    const { exitCode, stdout } = await this.connection.exec(['docker', 'info', '--format', '{{json .RegistryConfig.Mirrors}}'], {
      sudo: true,
      signal: this.signal,
    });
    try {
      const mirrors: unknown = JSON.parse(stdout);
      return exitCode === 0 && (mirrors === null || Array.isArray(mirrors)) ? (mirrors ?? []).map(String) : undefined;
    } catch {
      return undefined;
    }
  }

  /** Lets the daemon read its configuration again. It takes over what it can without a restart, mirrors among it, soon after; or tells its log why not. */
  async reload(): Promise<void> {
    await this.connection.exec(['sh', '-c', 'kill -HUP "$(cat /var/run/docker.pid)"'], { sudo: true, signal: this.signal });
  }
}
