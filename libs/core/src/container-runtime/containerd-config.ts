import { parse } from 'smol-toml';
import { AppError } from '../errors.js';
import { ownHeader } from '../host/host-file.js';
import type { NameKind } from '../oci/reference.js';
import { formatTable, setTomlString } from './toml-edit.js';

const defaultHostsDir = '/etc/containerd/certs.d';

/**
 * `hosts.toml` of one upstream: everything is pulled from the host's end of the tunnel, and from nowhere else, since
 * `server` takes the place of the upstream. Images are asked for below their upstream where they have such names
 * (`override_path`), else under their flat names. Format:
 * https://github.com/containerd/containerd/blob/main/docs/hosts.md
 */
export function renderHostsToml(
  upstream: string,
  localRegistry: string,
  port: number,
  naming: readonly NameKind[],
): string {
  const isBelow = upstream !== localRegistry && naming.includes('upstream');
  const server = `http://127.0.0.1:${port}/v2${isBelow ? `/${upstream.toLowerCase().replaceAll(':', '_')}` : ''}`;
  const settings = ['capabilities = ["pull", "resolve"]', 'override_path = true'];
  // containerd 1.6 wants a `host` table, and asks the upstream when it cannot read the file.
  return `${[ownHeader, `server = "${server}"`, ...settings, '', `[host."${server}"]`, ...settings.map((line) => `  ${line}`)].join('\n')}\n`;
}

/**
 * containerd's main configuration with a folder of `hosts.toml` files, and that folder: one that is configured already
 * is used as it is, and the text is returned itself. Comments and everything else stay. `null` is a file that is not
 * there. `major` is containerd's own version, for a file without one. Throws `host_file_refused` when the text is no
 * TOML or cannot be edited without changing more than this.
 */
export function setHostsDir(text: string | null, major: number): { text: string; hostsDir: string } {
  const { content, isEmpty, version } = readConfig(text, major);
  const table = ['plugins', pluginOf(version), 'registry'];
  const registry = tableOf(content, table);
  const present = registry?.config_path;
  if (typeof present === 'string' && present !== '')
    return { text: text ?? '', hostsDir: present.split(':')[0] ?? present };
  // containerd would start without its CRI plugin. Credentials (`auths`, `configs.*.auth`) may stay; version 2 no
  // longer knows `configs.*.tls`. Source:
  // https://github.com/containerd/containerd/blob/v1.6.0/pkg/cri/config/config.go#L337
  const configs = Object.values((registry?.configs as Record<string, Record<string, unknown>> | undefined) ?? {});
  const inTheWay = [
    ...(Object.keys((registry?.mirrors as object | undefined) ?? {}).length > 0 ? ['registry.mirrors'] : []),
    ...(version < 3 && major < 2 && configs.some((one) => one.tls !== undefined) ? ['registry.configs.*.tls'] : []),
  ];
  if (inTheWay.length > 0)
    throw new AppError('host_file_refused', {
      detail: `config.toml sets ${inTheWay.join(' and ')}, which containerd does not allow beside config_path; move them to ${defaultHostsDir}`,
    });
  if (isEmpty)
    return {
      text: `${text ? ensureNewline(text) : `${ownHeader}\n`}version = ${version}\n\n${formatTable(table)}\n  config_path = "${defaultHostsDir}"\n`,
      hostsDir: defaultHostsDir,
    };
  return { text: setTomlString(text ?? '', table, 'config_path', defaultHostsDir), hostsDir: defaultHostsDir };
}

/**
 * What is wrong with the configuration that containerd really uses, as `containerd config dump` or `migrate` prints it:
 * a file that the main one imports replaces the whole section of a plugin that it names. Undefined where images are
 * pulled by `hostsDir`. Throws `host_file_refused` when the text is no TOML. Source:
 * https://github.com/containerd/containerd/blob/v1.6.0/services/server/config/config.go#L299
 */
export function ineffectiveHostsDir(
  { file, text }: { file: string; text: string },
  hostsDir: string,
): string | undefined {
  const content = read(text);
  const plugin = ['io.containerd.cri.v1.images', 'io.containerd.grpc.v1.cri', 'cri'].find((name) =>
    tableOf(content, ['plugins', name, 'registry']),
  );
  const effective = plugin === undefined ? undefined : tableOf(content, ['plugins', plugin, 'registry'])?.config_path;
  // What a folder before it has for an upstream, or for all of them, counts in place of ours.
  const folders = typeof effective === 'string' ? effective.split(':') : [];
  const isOnePath =
    folders.length > 1 &&
    folders.includes(hostsDir) &&
    plugin !== undefined &&
    usesTransferService(tableOf(content, ['plugins', plugin]));
  if (folders[0] === hostsDir && !isOnePath) return undefined;
  const imports = Array.isArray(content.imports)
    ? content.imports.filter((one) => typeof one === 'string' && one !== file).slice(0, 10)
    : [];
  const path = JSON.stringify(effective ?? '').slice(0, 200);
  const seen =
    plugin === undefined
      ? 'has no CRI plugin'
      : isOnePath
        ? `takes config_path = ${path} for one folder, since it pulls by its transfer service: name ${hostsDir} alone there, or set use_local_image_pull = true`
        : `has config_path = ${path} for its CRI, not ${hostsDir}`;
  return `containerd runs with ${file}${imports.length > 0 ? `, which imports ${imports.join(', ')},` : ''} and ${seen}`;
}

/**
 * True where the CRI leaves pulls to the transfer service, which knows one folder only: from containerd 2.1 on, unless
 * it is told otherwise, or there are settings that the service lacks. Source:
 * https://github.com/containerd/containerd/blob/v2.4.2/internal/cri/config/config.go#L545
 */
function usesTransferService(images: Record<string, unknown> | undefined): boolean {
  const registry = images?.registry as Record<string, object | undefined> | undefined;
  return (
    images?.use_local_image_pull === false &&
    images.disable_snapshot_annotations !== false &&
    images.discard_unpacked_layers !== true &&
    images.image_pull_with_sync_fs !== true &&
    images.max_concurrent_downloads === 3 &&
    ['mirrors', 'configs', 'auths'].every((key) => Object.keys(registry?.[key] ?? {}).length === 0)
  );
}

/**
 * containerd's main configuration with the image of the containers that hold pods together; the text itself when it
 * names that one. `null` and `major` as for `setHostsDir`, `host_file_refused` as there.
 */
export function setSandboxImage(text: string | null, major: number, image: string): string {
  const { isEmpty, version } = readConfig(text, major);
  if (sandboxImageOf(text, major) === image) return text ?? '';
  const base = isEmpty ? `${text ? ensureNewline(text) : `${ownHeader}\n`}version = ${version}\n` : (text ?? '');
  return setTomlString(base, sandboxTable(version), sandboxKey(version), image);
}

/**
 * The image that `setSandboxImage` sets; undefined where the text leaves it to containerd. Throws `host_file_refused`
 * when the text is no TOML.
 */
export function sandboxImageOf(text: string | null, major: number): string | undefined {
  const { content, version } = readConfig(text, major);
  const image = tableOf(content, sandboxTable(version))?.[sandboxKey(version)];
  return typeof image === 'string' ? image : undefined;
}

const sandboxTable = (version: number) => ['plugins', pluginOf(version), ...(version >= 3 ? ['pinned_images'] : [])];
const sandboxKey = (version: number) => (version >= 3 ? 'sandbox' : 'sandbox_image');

function readConfig(
  text: string | null,
  major: number,
): { content: Record<string, unknown>; isEmpty: boolean; version: number } {
  const content = read(text ?? '');
  const isEmpty = Object.keys(content).length === 0;
  const version = isEmpty ? (major >= 2 ? 3 : 2) : typeof content.version === 'number' ? content.version : 1;
  return { content, isEmpty, version };
}

const tableOf = (content: Record<string, unknown>, table: readonly string[]) =>
  table.reduce<unknown>((at, key) => (at as Record<string, unknown> | undefined)?.[key], content) as
    | Record<string, unknown>
    | undefined;

/** The plugin that pulls images, by the version of the configuration format. */
function pluginOf(version: number): string {
  if (version >= 3) return 'io.containerd.cri.v1.images';
  return version === 2 ? 'io.containerd.grpc.v1.cri' : 'cri';
}

function read(text: string): Record<string, unknown> {
  try {
    // containerd 1.x reads past a byte order mark.
    return parse(text.replace(/^\ufeff/, ''));
  } catch (error) {
    throw new AppError('host_file_refused', {
      detail: `config.toml is not valid TOML: ${(error as Error).message.split('\n')[0]}`,
    });
  }
}

const ensureNewline = (text: string): string => (text.endsWith('\n') ? text : `${text}\n`);
