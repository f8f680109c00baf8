import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { isDigest } from '@airdock/core/oci/digest';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { z } from 'zod';
import { commandError } from './command-error.js';
import type { SshConnection } from './connection.js';
import type { RuntimeHost } from './runtime-host.js';

/** Of what a host answers, what is used. */
const manifest = z.object({
  config: z.object({ digest: z.string().optional() }).optional(),
  manifests: z
    .array(z.object({ digest: z.string().optional(), platform: z.object({ os: z.string().optional(), architecture: z.string().optional() }).optional() }))
    .optional(),
});
type Manifest = z.infer<typeof manifest>;

/** Kubernetes sees the images of this namespace only. */
const ctr = ['ctr', '--namespace', 'k8s.io'];
/** Manifests that are read with one command: its output is bounded. */
const manifestsAtOnce = 50;

/** containerd on a host, spoken to with the `ctr` that comes with it; pulls go where `hostsDir` says, as those of the kubelet do. */
export class ContainerdHost implements RuntimeHost {
  readonly name = 'containerd';

  constructor(
    private readonly connection: SshConnection,
    private readonly signal: AbortSignal,
    private readonly hostsDir = '/etc/containerd/certs.d',
  ) {}

  async version(): Promise<string | undefined> {
    const { exitCode, stdout } = await this.connection.exec(['ctr', '--connect-timeout', '5s', 'version'], { sudo: true, signal: this.signal });
    const [, version] = /^Server:[^]*?^ *Version: *([\w.+~-]{1,100})$/m.exec(stdout.slice(0, 10_000)) ?? [];
    return exitCode === 0 ? version : undefined;
  }

  async imageIds(platform: string): Promise<Map<string, string>> {
    const targets = await this.list();
    const manifests = await this.manifests([...new Set(targets.values())]);
    const [os, architecture] = platform.split('/');
    const chosen = (digest: string) =>
      manifests.get(digest)?.manifests?.find((child) => child.platform?.os === os && child.platform?.architecture === architecture)?.digest;
    const children = await this.manifests([...new Set([...targets.values()].map(chosen).filter((digest) => digest !== undefined))]);
    const images = new Map<string, string>();
    for (const [name, digest] of targets) {
      const id = (manifests.get(digest)?.config ?? children.get(chosen(digest) ?? '')?.config)?.digest;
      if (id) images.set(name, id);
    }
    return images;
  }

  async load(archive: Readable): Promise<void> {
    await this.connection.run([...ctr, 'images', 'import', '-'], { sudo: true, stdin: archive, signal: this.signal, stallTimeoutMs: 600_000 });
  }

  async pull(reference: string): Promise<string> {
    const name = formatReference(parseReference(reference));
    const { exitCode, stdout, stderr } = await this.connection.exec([...ctr, 'images', 'pull', '--hosts-dir', this.hostsDir, name], {
      sudo: true,
      signal: this.signal,
      stallTimeoutMs: 900_000,
    });
    if (exitCode !== 0) throw commandError('host_pull_failed', { detail: `${reference}: ${(stderr || stdout).trim().slice(-500)}`, reference });
    const digest = (await this.list()).get(name);
    if (!digest) throw new AppError('host_pull_failed', { detail: `${reference}: containerd knows no digest of it`, reference });
    return digest;
  }

  async tag(reference: string, name: string): Promise<void> {
    const [from, to] = [reference, name].map((text) => formatReference(parseReference(text))) as [string, string];
    await this.connection.run([...ctr, 'images', 'tag', '--force', from, to], { sudo: true, signal: this.signal });
  }

  /** Containers keep what they run on by themselves. */
  async remove(reference: string): Promise<boolean> {
    await this.connection.run([...ctr, 'images', 'rm', '--sync', formatReference(parseReference(reference))], { sudo: true, signal: this.signal });
    return true;
  }

  /** `ok`, `error` or `skip` as containerd says of the plugin that Kubernetes speaks to; undefined when containerd does not answer. */
  async criState(): Promise<string | undefined> {
    const { exitCode, stdout } = await this.connection.exec(['ctr', 'plugins', 'list'], { sudo: true, signal: this.signal });
    if (exitCode !== 0) return undefined;
    const states = stdout
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter(([type = '', id]) => id === 'cri' || type.startsWith('io.containerd.cri.'))
      .map((columns) => columns.at(-1) ?? '');
    return states.find((state) => state === 'error') ?? states[0] ?? 'skip';
  }

  /** Target digests by full reference. */
  private async list(): Promise<Map<string, string>> {
    const output = await this.connection.run([...ctr, 'images', 'list'], { sudo: true, signal: this.signal });
    const images = new Map<string, string>();
    for (const line of output.split('\n').slice(1)) {
      // REF TYPE DIGEST …; the CRI plugin lists images under their IDs too.
      const [name = '', , digest = ''] = line.split(/\s+/);
      if (isDigest(digest) && !name.startsWith('sha256:') && isReference(name)) images.set(name, digest);
    }
    return images;
  }

  /** Documents by digest; what cannot be read is left out. */
  private async manifests(digests: string[]): Promise<Map<string, Manifest>> {
    const found = new Map<string, Manifest>();
    for (let index = 0; index < digests.length; index += manifestsAtOnce) {
      const script = 'for digest; do printf "%s " "$digest"; ctr --namespace k8s.io content get "$digest" 2>/dev/null | tr -d "\\n"; echo; done';
      const some = digests.slice(index, index + manifestsAtOnce);
      const output = await this.connection.run(['sh', '-c', script, 'sh', ...some], { sudo: true, signal: this.signal });
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
