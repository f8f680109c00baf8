/**
 * Stand-ins of kubeadm, kubelet and kubectl, as packages. There are no packages of the real ones, nor images of
 * Kubernetes, where these tests run. They refuse what the real ones refuse, and pull every image by the host's runtime;
 * what they do instead of running Kubernetes is in docs/nodes.md.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDeb } from './package-folders.js';

/**
 * Tags of the images that come with a version of Kubernetes but have versions of their own: `kubeadm config images
 * list`.
 */
const ownTags: Record<string, { pause: string; etcd: string; coredns: string }> = {
  '1.19.16': { pause: '3.2', etcd: '3.4.13-0', coredns: '1.7.0' },
  '1.20.11': { pause: '3.2', etcd: '3.4.13-0', coredns: '1.7.0' },
  '1.21.14': { pause: '3.4.1', etcd: '3.4.13-0', coredns: 'v1.8.0' },
  '1.22.17': { pause: '3.5', etcd: '3.5.6-0', coredns: 'v1.8.4' },
};

function tagsOf(version: string) {
  const tags = ownTags[version];
  if (!tags) throw new Error(`the stand-in knows ${Object.keys(ownTags).join(', ')}, not ${version}`);
  return tags;
}

/** Upstream names of the images that kubeadm wants for a version, as release bundles have them. */
export function kubernetesImages(version: string): string[] {
  const { pause, etcd, coredns } = tagsOf(version);
  const components = ['kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kube-proxy'].map(
    (name) => `${name}:v${version}`,
  );
  const dns = coredns.startsWith('v') ? `coredns/coredns:${coredns}` : `coredns:${coredns}`;
  return [...components, `pause:${pause}`, `etcd:${etcd}`, dns].map((name) => `k8s.gcr.io/${name}`);
}

const unit = `[Unit]
Description=kubelet, a stand-in
[Service]
ExecStart=/usr/bin/kubelet
Restart=always
[Install]
WantedBy=multi-user.target
`;

/**
 * Started and restarted as on a Debian without systemd. What starts it must not wait for it, nor leave it an open file.
 */
const initScript = `#!/bin/sh
### BEGIN INIT INFO
# Provides: kubelet
# Required-Start: $local_fs
# Required-Stop: $local_fs
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
### END INIT INFO
pidfile=/run/kubelet.pid
lives() { [ -r "/proc/$1/status" ] && ! grep -q '^State:.*Z' "/proc/$1/status"; }
start() {
  pid=$(cat "$pidfile" 2>/dev/null)
  [ -z "$pid" ] || ! lives "$pid" || return 0
  setsid /usr/bin/kubelet >>/var/log/kubelet.log 2>&1 </dev/null 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
  echo $! >"$pidfile"
}
stop() {
  pid=$(cat "$pidfile" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null
  for _ in $(seq 100); do
    lives "$pid" || break
    sleep 0.1
  done
  rm -f "$pidfile"
}
case "$1" in
start) start ;;
stop) stop ;;
restart) stop; start ;;
*) exit 2 ;;
esac
`;

// Beside the source, also for what is built.
const programs = join(import.meta.dirname.replace('/dist/', '/src/'), 'kubeadm');

/**
 * Makes the packages `kubeadm` `kubelet` `kubectl` of these versions, in Debian's form of upstream's (`1.20.11-00`).
 */
export async function makeKubernetesPackages(folder: string, versions: readonly string[]): Promise<void> {
  const names = ['kubeadm', 'kubelet', 'kubectl'] as const;
  const [shared, ...sources] = await Promise.all(
    ['shared', ...names].map((name) => readFile(join(programs, `${name}.py`), 'utf8')),
  );
  for (const version of versions)
    for (const [index, name] of names.entries()) {
      const head = `#!/usr/bin/python3\nVERSION = ${JSON.stringify(version)}\nIMAGES = ${JSON.stringify(tagsOf(version))}\n`;
      const files = { [`usr/bin/${name}`]: { content: `${head}${shared}\n\n${sources[index]}`, mode: 0o755 } };
      if (name === 'kubelet')
        Object.assign(files, {
          'etc/init.d/kubelet': { content: initScript, mode: 0o755 },
          'lib/systemd/system/kubelet.service': { content: unit, mode: 0o644 },
        });
      // As the real ones say it: a kubeadm upgrades with an older kubelet beside it.
      const depends = name === 'kubeadm' ? ['kubelet (>= 1.19.0)', 'kubectl (>= 1.19.0)', 'python3'] : ['python3'];
      await makeDeb(folder, name, { version: `${version}-00`, files, depends });
    }
}
