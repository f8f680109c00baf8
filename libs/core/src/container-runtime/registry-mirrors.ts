import { ownHeader } from '../host/host-file.js';
import type { NameKind } from '../oci/reference.js';

/** Where the images of upstreams are in the local registry, as hosts reach it. */
export interface Mirrors {
  /** e.g. `k8s.gcr.io`, `docker.io` */
  upstreams: readonly string[];
  /** `localhost:5100`, what local references begin with. */
  localRegistry: string;
  /** On 127.0.0.1 of the host. */
  port: number;
  naming: readonly NameKind[];
}

/**
 * The path below which the images of an upstream are: its own where they have such names, else none, where flat names
 * are.
 */
const pathOf = (upstream: string, naming: readonly NameKind[]): string =>
  naming.includes('upstream') ? upstream.toLowerCase().replaceAll(':', '_') : '';

/**
 * `/etc/rancher/k3s/registries.yaml`, or `/etc/rancher/rke2/registries.yaml`. Only
 * `--disable-default-registry-endpoint` keeps k3s (1.29 and later) and RKE2 from asking the upstream when an image is
 * missing here. Format: https://docs.k3s.io/installation/private-registry
 */
export function renderRegistriesYaml({ upstreams, localRegistry, port, naming }: Mirrors): string {
  const mirror = (name: string, path: string) => [
    `  ${JSON.stringify(name)}:`,
    '    endpoint:',
    `      - "http://127.0.0.1:${port}"`,
    ...(path ? ['    rewrite:', `      "^(.*)$": "${path}/$1"`] : []),
  ];
  const lines = [
    ...upstreams.flatMap((upstream) => mirror(upstream, pathOf(upstream, naming))),
    ...mirror(localRegistry, ''),
  ];
  return `${[ownHeader, 'mirrors:', ...lines].join('\n')}\n`;
}

/**
 * `/etc/containers/registries.conf.d/airdock.conf` for CRI-O, podman and skopeo. The local registry is the `location`
 * of each upstream and not a mirror of it: nobody asks the upstream. Format:
 * https://github.com/containers/image/blob/main/docs/containers-registries.conf.5.md
 */
export function renderRegistriesConf({ upstreams, localRegistry, port, naming }: Mirrors): string {
  const registry = (prefix: string, path: string) => [
    '',
    '[[registry]]',
    `prefix = ${JSON.stringify(prefix)}`,
    `location = "127.0.0.1:${port}${path ? `/${path}` : ''}"`,
    'insecure = true',
  ];
  return `${[ownHeader, ...upstreams.flatMap((upstream) => registry(upstream, pathOf(upstream, naming))), ...registry(localRegistry, '')].join('\n')}\n`;
}
