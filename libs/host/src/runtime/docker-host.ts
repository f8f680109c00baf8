import type { Readable } from 'node:stream';
import { hasMirror, isFirstMirror } from '@airdock/core/container-runtime/daemon-json';
import { AppError } from '@airdock/core/errors';
import { cleanLine } from '@airdock/core/host/host-text';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { commandError } from '@airdock/ssh/command/command-error';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { z } from 'zod';
import { dockerVersionScript, scriptFunctions } from '../system/system-facts.js';
import { askDocker, type DockerRequest } from './docker-api.js';
import type { RuntimeHost } from './runtime-host.js';

// What a host answers, which may be anything.
const images = z.array(
  z.object({ Id: z.string(), RepoTags: z.array(z.string()).nullish(), RepoDigests: z.array(z.string()).nullish() }),
);
const info = z.object({ RegistryConfig: z.object({ Mirrors: z.array(z.string()).nullish() }) });
const errorLine = z.object({ error: z.string() });
const refusal = z.object({ message: z.string() });
const digestsOf = (found: unknown): string[] => z.array(z.string()).nullish().catch(null).parse(found) ?? [];

const pullScript = `docker pull --quiet "$1" >/dev/null && docker image inspect --format '{{json .RepoDigests}}' "$1"`;

/** Docker on a host: its API where there is a way to it, else its program. */
export class DockerHost implements RuntimeHost {
  readonly name = 'docker';

  constructor(
    private readonly connection: SshConnection,
    private readonly signal: AbortSignal,
  ) {}

  /** Of the daemon; undefined when there is none, or it does not answer within 20 s. */
  async version(): Promise<string | undefined> {
    // `/version` looks at all the programs that Docker uses; the header of a ping says the same.
    const answer = await this.ask('GET', '/_ping', { stallTimeoutMs: 20_000 }).catch((error: unknown) => {
      if (!(error instanceof AppError) || (error.code !== 'host_timeout' && error.code !== 'host_command_failed'))
        throw error;
      return undefined;
    });
    const [, version] = /^Docker\/([\w.+~-]{1,100})/.exec(String(answer?.headers.server)) ?? [];
    if (version) return version;
    const { stdout } = await this.connection.exec(['sh', '-c', `${scriptFunctions}\n${dockerVersionScript}`], {
      sudo: true,
      signal: this.signal,
    });
    return /^docker=([\w.+~-]{1,100})$/m.exec(stdout)?.[1];
  }

  async imageIds(): Promise<Map<string, string>> {
    const answer = await this.ask('GET', '/images/json');
    if (answer?.status === 200) {
      const found = images.safeParse(parseJson(answer.body)).data;
      if (!found)
        throw new AppError('host_command_failed', { detail: "Docker's API answers what is no list of images" });
      return namesToIds(
        found.flatMap(({ Id, RepoTags, RepoDigests }) =>
          [...(RepoTags ?? []), ...(RepoDigests ?? [])].map((name): [string, string] => [name, Id]),
        ),
      );
    }
    const output = await this.connection.run(
      [
        'docker',
        'image',
        'ls',
        '--no-trunc',
        '--digests',
        '--format',
        '{{.Repository}}:{{.Tag}} {{.ID}}\\n{{.Repository}}@{{.Digest}} {{.ID}}',
      ],
      {
        sudo: true,
        signal: this.signal,
      },
    );
    return namesToIds(output.split('\n').map((line) => line.split(' ')));
  }

  async load(archive: Readable): Promise<void> {
    await this.connection.run(['docker', 'load', '--quiet'], {
      sudo: true,
      stdin: archive,
      signal: this.signal,
      stallTimeoutMs: 600_000,
    });
  }

  /** False also where there is no way to the API. */
  async has(reference: string): Promise<boolean> {
    return (await this.ask('GET', `/images/${reference}/json`))?.status === 200;
  }

  async pull(reference: string): Promise<string> {
    const digests = (await this.pullByApi(reference)) ?? (await this.pullByProgram(reference));
    const { registry, repository } = parseReference(reference);
    const own = digests
      .map((text) => text.split('@'))
      .find(([name = '']) => {
        const parsed = parseReference(name);
        return parsed.registry === registry && parsed.repository === repository;
      });
    if (!own?.[1])
      throw new AppError('host_pull_failed', { detail: `${reference}: Docker knows no digest of it`, reference });
    return own[1];
  }

  /** The names with a digest that Docker has for the image then. Undefined where there is no way to the API. */
  private async pullByApi(reference: string): Promise<string[] | undefined> {
    const { registry, repository, tag, digest } = parseReference(reference);
    let problem: string | undefined;
    const onLine = (line: string) => {
      if (line.includes('"error"')) problem = errorLine.safeParse(parseJson(line)).data?.error ?? problem;
    };
    const query = new URLSearchParams({ fromImage: `${registry}/${repository}`, tag: digest ?? tag ?? 'latest' });
    const pulled = await this.ask('POST', `/images/create?${query}`, { stallTimeoutMs: 900_000, onLine }).catch(
      (error: unknown) => {
        if (!(error instanceof AppError) || error.code !== 'host_command_failed') throw error;
        throw new AppError(
          'host_pull_failed',
          { detail: `${reference}: ${error.message}`, reference },
          { cause: error },
        );
      },
    );
    if (!pulled) return undefined;
    if (pulled.status !== 200) problem = messageOf(pulled.body);
    const image = problem === undefined ? await this.ask('GET', `/images/${reference}/json`) : undefined;
    if (image?.status !== 200)
      throw commandError('host_pull_failed', {
        detail: `${reference}: ${(problem ?? messageOf(image?.body ?? '')).trim().slice(-500)}`,
        reference,
      });
    return digestsOf((parseJson(image.body) as { RepoDigests?: unknown } | null)?.RepoDigests);
  }

  private async pullByProgram(reference: string): Promise<string[]> {
    const { exitCode, stdout, stderr } = await this.connection.exec(['sh', '-c', pullScript, 'sh', reference], {
      sudo: true,
      signal: this.signal,
      stallTimeoutMs: 900_000,
    });
    if (exitCode !== 0)
      throw commandError('host_pull_failed', {
        detail: `${reference}: ${(stderr || stdout).trim().slice(-500)}`,
        reference,
      });
    return digestsOf(parseJson(stdout));
  }

  async tag(reference: string, name: string): Promise<void> {
    await this.connection.run(['docker', 'image', 'tag', reference, name], { sudo: true, signal: this.signal });
  }

  async remove(reference: string): Promise<boolean> {
    const { exitCode, stderr } = await this.connection.exec(['docker', 'image', 'rm', reference], {
      sudo: true,
      signal: this.signal,
    });
    if (exitCode === 0 || /no such image/i.test(stderr)) return true;
    if (/conflict|in use|is using/i.test(stderr)) return false;
    throw new AppError('host_command_failed', {
      detail: `docker image rm ${reference}: ${stderr.trim().slice(-300)}`,
      exitCode,
    });
  }

  /** The registry mirrors that the running daemon knows; undefined when it does not answer. */
  async mirrors(): Promise<string[] | undefined> {
    const answer = await this.ask('GET', '/info', { stallTimeoutMs: 20_000 }).catch((error: unknown) => {
      if (!(error instanceof AppError) || (error.code !== 'host_timeout' && error.code !== 'host_command_failed'))
        throw error;
      return undefined;
    });
    if (answer?.status === 200) return info.safeParse(parseJson(answer.body)).data?.RegistryConfig.Mirrors ?? [];
    const { exitCode, stdout } = await this.connection.exec(
      ['docker', 'info', '--format', '{{json .RegistryConfig.Mirrors}}'],
      {
        sudo: true,
        signal: this.signal,
      },
    );
    try {
      const mirrors: unknown = JSON.parse(stdout);
      return exitCode === 0 && (mirrors === null || Array.isArray(mirrors)) ? (mirrors ?? []).map(String) : undefined;
    } catch {
      return undefined;
    }
  }

  /**
   * The running daemon asks this mirror before any other: not its file counts, but what it made of that. Throws
   * `host_config_ineffective`.
   */
  async assertInForce(mirror: string): Promise<void> {
    const mirrors = await this.mirrors();
    if (mirrors && isFirstMirror(mirrors, mirror)) return;
    const seen = mirrors?.slice(0, 5).map((one) => cleanLine(one, 100));
    if (mirrors && hasMirror(mirrors, mirror))
      throw new AppError('host_config_ineffective', {
        detail: `Docker asks ${seen?.[0]} before ${mirror}, and waits for it when it does not answer: configuring the host again puts ${mirror} first`,
      });
    const detail = `/etc/docker/daemon.json names ${mirror}, and docker info ${seen?.length ? `names ${seen.join(', ')}` : 'names no mirror'}: does dockerd read another file (--config-file)?`;
    throw new AppError('host_config_ineffective', { detail });
  }

  /**
   * Lets the daemon read its configuration again. It takes over what it can without a restart, mirrors among it, soon
   * after; or tells its log why not.
   */
  async reload(): Promise<void> {
    await this.connection.exec(['sh', '-c', 'kill -HUP "$(cat /var/run/docker.pid)"'], {
      sudo: true,
      signal: this.signal,
    });
  }

  private ask(method: 'GET' | 'POST', path: string, options: DockerRequest = {}) {
    return askDocker(this.connection, method, path, { signal: this.signal, ...options });
  }
}

function namesToIds(pairs: string[][]): Map<string, string> {
  const images = new Map<string, string>();
  for (const [name = '', id = ''] of pairs)
    if (name && !name.includes('<none>')) images.set(formatReference(parseReference(name)), id);
  return images;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new AppError(
      'host_command_failed',
      { detail: `Docker's API answers what is no JSON: ${text.slice(0, 200)}` },
      { cause },
    );
  }
}

/** What Docker complains of. */
const messageOf = (body: string): string =>
  body.startsWith('{') ? (refusal.safeParse(parseJson(body)).data?.message ?? body) : body;
