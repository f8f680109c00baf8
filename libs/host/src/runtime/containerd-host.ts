import type { Readable } from 'node:stream';
import { ineffectiveHostsDir, setHostsDir } from '@airdock/core/container-runtime/containerd-config';
import { AppError } from '@airdock/core/errors';
import { cleanLine } from '@airdock/core/host/host-text';
import { isDigest } from '@airdock/core/oci/digest';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { commandError } from '@airdock/ssh/command/command-error';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { z } from 'zod';
import { HostFiles } from '../system/host-files.js';
import { pullByCri } from './cri.js';
import type { RuntimeHost } from './runtime-host.js';

/** Of what a host answers, what is used. */
const manifest = z.object({
  config: z.object({ digest: z.string().optional() }).optional(),
  manifests: z
    .array(
      z.object({
        digest: z.string().optional(),
        platform: z.object({ os: z.string().optional(), architecture: z.string().optional() }).optional(),
      }),
    )
    .optional(),
});
type Manifest = z.infer<typeof manifest>;

/** The main configuration file of containerd. */
export const configToml = '/etc/containerd/config.toml';
/** The major version of `1.7.2` or `v2.0.5`; 1 where it is not known. */
export const majorOf = (version: string | undefined): number =>
  Number.parseInt((version ?? '').replace(/^v/, ''), 10) || 1;

/** Kubernetes sees the images of this namespace only. */
const ctr = ['ctr', '--namespace', 'k8s.io'];
/** Manifests that are read with one command: its output is bounded. */
const manifestsAtOnce = 50;

/**
 * Prints the configuration that containerd makes of its files: the main one, which its command line may name, and all
 * that this imports. Before it, as comments, the main file, and which of them were changed after containerd had read
 * them. The kernel tells the start of a process in ticks after the boot, of which the time is known to a second.
 */
const dumpScript = `
pid=
if [ -d /run/systemd/system ]; then pid=$(systemctl show -p MainPID --value containerd 2>/dev/null); fi
# The one that Docker starts for itself has another file.
if [ -z "$pid" ] || [ "$pid" = 0 ]; then
  for pid in $(pgrep -x containerd) ''; do [ -z "$pid" ] || grep -q docker "/proc/$pid/cmdline" || break; done
fi
config=
if [ -n "$pid" ]; then
  config=$(tr '\\0' '\\n' <"/proc/$pid/cmdline" | awk 'take {print; exit} $0 == "-c" || $0 == "--config" {take = 1} /^(-c|--config)=/ {sub(/^[^=]*=/, ""); print; exit}')
fi
main=\${config:-/etc/containerd/config.toml}
echo "# $main"
started=
if [ -n "$pid" ] && read -r stat <"/proc/$pid/stat"; then
  set -- \${stat##*) }
  started=$(($(awk '$1 == "btime" {print $2}' /proc/stat) + \${20} / $(getconf CLK_TCK || echo 100)))
fi
if [ -n "$config" ]; then set -- --config "$config"; else set --; fi
# The dump of containerd 2 leaves out what it takes over from files of older versions.
case $(containerd --version | awk '{print $3}') in
1.* | v1.*) dump=$(containerd "$@" config dump) || exit ;;
*) dump=$(containerd "$@" config migrate) || exit ;;
esac
if [ -n "$started" ]; then
  for file in "$main" $(printf '%s\\n' "$dump" | sed -n 's/^imports = \\[\\(.*\\)\\]$/\\1/p' | tr -d "\\"' " | tr , ' '); do
    changed=$(stat -L -c %Y "$file" 2>/dev/null) || continue
    # One from the future is of a clock that was set back.
    if [ "$changed" -gt $((started + 2)) ] && [ "$changed" -le "$(date +%s)" ]; then echo "# changed=$file"; fi
  done
fi
printf '%s\\n' "$dump"`;

/**
 * containerd on a host: images are pulled as the kubelet lets it pull them, through its CRI; all else is asked of the
 * `ctr` that comes with it.
 */
export class ContainerdHost implements RuntimeHost {
  readonly name = 'containerd';
  /** Pulls went by `ctr`, since there is no way to the CRI, though containerd says that it has one. */
  isBesideCri = false;

  constructor(
    private readonly connection: SshConnection,
    private readonly signal: AbortSignal,
    private readonly hostsDir = '/etc/containerd/certs.d',
  ) {}

  /** The one of a host that is configured: with the folder that its configuration names. Throws `host_file_refused`. */
  static async configured(connection: SshConnection, signal: AbortSignal): Promise<ContainerdHost> {
    const { text } = await new HostFiles(connection, signal).read(configToml);
    const version = await new ContainerdHost(connection, signal).version();
    return new ContainerdHost(connection, signal, setHostsDir(text, majorOf(version)).hostsDir);
  }

  async version(): Promise<string | undefined> {
    const { exitCode, stdout } = await this.connection.exec(['ctr', '--connect-timeout', '5s', 'version'], {
      sudo: true,
      signal: this.signal,
    });
    const [, version] = /^Server:[^]*?^ *Version: *([\w.+~-]{1,100})$/m.exec(stdout.slice(0, 10_000)) ?? [];
    return exitCode === 0 ? version : undefined;
  }

  async imageIds(platform: string): Promise<Map<string, string>> {
    const targets = await this.list();
    const manifests = await this.manifests([...new Set(targets.values())]);
    const [os, architecture] = platform.split('/');
    const chosen = (digest: string) =>
      manifests
        .get(digest)
        ?.manifests?.find((child) => child.platform?.os === os && child.platform?.architecture === architecture)
        ?.digest;
    const children = await this.manifests([
      ...new Set([...targets.values()].map(chosen).filter((digest) => digest !== undefined)),
    ]);
    const images = new Map<string, string>();
    for (const [name, digest] of targets) {
      const id = (manifests.get(digest)?.config ?? children.get(chosen(digest) ?? '')?.config)?.digest;
      if (id) images.set(name, id);
    }
    return images;
  }

  async load(archive: Readable): Promise<void> {
    await this.connection.run([...ctr, 'images', 'import', '-'], {
      sudo: true,
      stdin: archive,
      signal: this.signal,
      stallTimeoutMs: 600_000,
    });
  }

  async pull(reference: string): Promise<string> {
    const name = formatReference(parseReference(reference));
    if (!(await this.pullByCri(name))) {
      await this.assertCri();
      this.isBesideCri = true;
      const argv = [...ctr, 'images', 'pull', '--hosts-dir', this.hostsDir, name];
      const { exitCode, stdout, stderr } = await this.connection.exec(argv, {
        sudo: true,
        signal: this.signal,
        stallTimeoutMs: 900_000,
      });
      if (exitCode !== 0)
        throw commandError('host_pull_failed', {
          detail: `${reference}: ${(stderr || stdout).trim().slice(-500)}`,
          reference,
        });
    }
    const digest = (await this.list()).get(name);
    if (!digest)
      throw new AppError('host_pull_failed', { detail: `${reference}: containerd knows no digest of it`, reference });
    return digest;
  }

  /**
   * An older curl breaks off in the middle of the answer that there is no CRI: whether there is one says containerd.
   */
  private async pullByCri(name: string): Promise<boolean> {
    try {
      return await pullByCri(this.connection, name, this.signal);
    } catch (error) {
      if (error instanceof AppError && error.code === 'host_pull_failed') await this.assertCri();
      throw error;
    }
  }

  async tag(reference: string, name: string): Promise<void> {
    const [from, to] = [reference, name].map((text) => formatReference(parseReference(text))) as [string, string];
    await this.connection.run([...ctr, 'images', 'tag', '--force', from, to], { sudo: true, signal: this.signal });
  }

  /**
   * Containers keep what they run on by themselves. With the last of its names go those that the CRI has given it by
   * itself.
   */
  async remove(reference: string): Promise<boolean> {
    const { registry, repository, tag, digest } = parseReference(reference);
    const name = formatReference({ registry, repository, tag, digest });
    const all = await this.listAll();
    const others = [...all]
      .filter(([other, target]) => other !== name && target === all.get(name))
      .map(([other]) => other);
    const isTagged = others.some((other) => other.startsWith(`${registry}/${repository}:`));
    const byDigest = isTagged ? [] : others.filter((other) => other.startsWith(`${registry}/${repository}@`));
    const ids = others.every((other) => isDigest(other) || byDigest.includes(other)) ? others.filter(isDigest) : [];
    await this.connection.run([...ctr, 'images', 'rm', '--sync', name, ...byDigest, ...ids], {
      sudo: true,
      signal: this.signal,
    });
    return true;
  }

  /**
   * `ok`, `error` or `skip` as containerd says of the plugin that Kubernetes speaks to; undefined when containerd does
   * not answer.
   */
  async criState(): Promise<string | undefined> {
    const { exitCode, stdout } = await this.connection.exec(['ctr', 'plugins', 'list'], {
      sudo: true,
      signal: this.signal,
    });
    if (exitCode !== 0) return undefined;
    // In containerd 2 the service has plugins of its own for images and for containers.
    const states = stdout
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter(([type = '', id]) => id === 'cri' || type.startsWith('io.containerd.cri.'))
      .map((columns) => [columns[1], columns.at(-1)]);
    return states.some(([, state]) => state === 'error')
      ? 'error'
      : (states.find(([id]) => id === 'cri')?.[1] ?? 'skip');
  }

  /** Throws `host_cri_unavailable` unless Kubernetes can use this containerd. */
  async assertCri(): Promise<void> {
    const state = await this.criState();
    if (state === undefined)
      throw new AppError('host_runtime_missing', { detail: 'containerd gives no answer to ctr' });
    if (state === 'ok') return;
    throw new AppError('host_cri_unavailable', {
      detail:
        state === 'skip'
          ? 'its CRI plugin is not loaded: see disabled_plugins'
          : `containerd says of its CRI plugin: ${cleanLine(state, 30)}`,
    });
  }

  /**
   * Kubernetes can use this containerd, which pulls by `hostsDir`: not its file counts, but what it makes of that and
   * of all that this imports, and when it has read them. Throws `host_cri_unavailable`, `host_config_ineffective`, and
   * `host_command_failed` where containerd cannot say.
   */
  async assertInForce(): Promise<void> {
    await this.assertCri();
    const { dump, changed } = await this.dump();
    const file = cleanLine(dump.split('\n', 1)[0]?.slice(2) ?? '');
    const wrong = ineffectiveHostsDir({ file, text: dump }, this.hostsDir);
    if (wrong !== undefined) throw new AppError('host_config_ineffective', { detail: wrong });
    if (changed !== undefined)
      throw new AppError('host_config_ineffective', {
        detail: `${changed} was changed after containerd had read it: restart containerd`,
      });
  }

  /** Whether a restart makes it read something new. Throws `host_command_failed`. */
  async isBehindFiles(): Promise<boolean> {
    return (await this.dump()).changed !== undefined;
  }

  /** What containerd makes of its files, and one that it has not read as it is now. */
  private async dump(): Promise<{ dump: string; changed: string | undefined }> {
    const dump = await this.connection.run(['sh', '-c', dumpScript], { sudo: true, signal: this.signal });
    const [, changed] = /^# changed=(.+)$/m.exec(dump) ?? [];
    return { dump, changed: changed === undefined ? undefined : cleanLine(changed) };
  }

  /** Target digests by full reference. */
  private async list(): Promise<Map<string, string>> {
    return new Map([...(await this.listAll())].filter(([name]) => !isDigest(name)));
  }

  /** The CRI lists images under their IDs too. */
  private async listAll(): Promise<Map<string, string>> {
    const output = await this.connection.run([...ctr, 'images', 'list'], { sudo: true, signal: this.signal });
    const images = new Map<string, string>();
    for (const line of output.split('\n').slice(1)) {
      // REF TYPE DIGEST …
      const [name = '', , digest = ''] = line.split(/\s+/);
      if (isDigest(digest) && (isDigest(name) || isReference(name))) images.set(name, digest);
    }
    return images;
  }

  /** Documents by digest; what cannot be read is left out. */
  private async manifests(digests: string[]): Promise<Map<string, Manifest>> {
    const found = new Map<string, Manifest>();
    for (let index = 0; index < digests.length; index += manifestsAtOnce) {
      const script =
        'for digest; do printf "%s " "$digest"; ctr --namespace k8s.io content get "$digest" 2>/dev/null | tr -d "\\n"; echo; done';
      const some = digests.slice(index, index + manifestsAtOnce);
      const output = await this.connection.run(['sh', '-c', script, 'sh', ...some], {
        sudo: true,
        signal: this.signal,
      });
      for (const line of output.split('\n')) {
        const at = line.indexOf(' ');
        try {
          found.set(line.slice(0, at), manifest.parse(JSON.parse(line.slice(at + 1))));
        } catch {
          // Content that is gone, or a host that says anything: the image counts as missing and is brought again.
        }
      }
    }
    return found;
  }
}

function isReference(text: string): boolean {
  try {
    return formatReference(parseReference(text)) === text;
  } catch {
    return false;
  }
}
