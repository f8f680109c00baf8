import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { startRegistry, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { runtimeFiles } from './cluster-configuration.service.js';

const run = promisify(execFile);

// containerd and Docker read theirs in the lab; k3s and RKE2 cannot be had where these tests run.
describe('files that point a runtime at the registry', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let registry: TestRegistry;
  const filesOf = (naming: ('flat' | 'upstream')[]) =>
    runtimeFiles({
      mirroredUpstreams: ['k8s.gcr.io', 'docker.io', 'harbor.site:8443'],
      naming,
      registry: { port: registry.port } as never,
    });
  const textOf = (runtime: string, naming: ('flat' | 'upstream')[] = ['flat', 'upstream']) =>
    filesOf(naming).find((file) => file.runtime === runtime)?.text ?? '';

  beforeAll(async () => {
    folder = await tempDir('runtime-files');
    registry = await startRegistry();
    const file = join(folder.path, 'pause.tar');
    await buildOciArchive(file, [
      await makeImage({ name: 'k8s.gcr.io/pause:3.2', layers: [{ files: { pause: 'pause' } }] }),
    ]);
    for (const name of ['k8s.gcr.io/pause:3.2', 'harbor.site_8443/team/app:1', 'pause:3.2'])
      await run('skopeo', [
        'copy',
        '--insecure-policy',
        '--dest-tls-verify=false',
        `oci-archive:${file}`,
        `docker://127.0.0.1:${registry.port}/${name}`,
      ]);
  });
  afterAll(async () => {
    await registry?.stop();
    await folder?.remove();
  });

  /** The manifest, as what CRI-O, podman and skopeo have in common finds it. */
  async function inspect(naming: ('flat' | 'upstream')[], name: string): Promise<string> {
    const file = join(folder.path, `${naming.join('-')}.conf`);
    await writeFile(file, textOf('cri-o', naming));
    return (
      await run('skopeo', ['--registries-conf', file, 'inspect', '--raw', `docker://${name}`], { timeout: 30_000 })
    ).stdout;
  }

  it.each([
    [['flat', 'upstream'], 'k8s.gcr.io/pause:3.2', 'k8s.gcr.io/pause/manifests/3.2'],
    [['flat', 'upstream'], 'harbor.site:8443/team/app:1', 'harbor.site_8443/team/app/manifests/1'],
    [['flat'], 'k8s.gcr.io/pause:3.2', 'pause/manifests/3.2'],
  ] as const)('with %j names let CRI-O find %s here', async (naming, name, path) => {
    const accept = 'application/vnd.oci.image.manifest.v1+json';
    const wanted = await (await fetch(`${registry.url}/v2/${path}`, { headers: { accept } })).text();
    expect(wanted).toContain('layers');
    expect(await inspect([...naming], name)).toBe(wanted);
  });

  it('let nothing ask an upstream for what is missing here', async () => {
    const asked = inspect(['flat', 'upstream'], 'k8s.gcr.io/kube-proxy:v1.20.11');
    await expect(asked).rejects.toThrow(`127.0.0.1:${registry.port}/k8s.gcr.io/kube-proxy`);
    await expect(asked).rejects.toThrow(/manifest unknown|name unknown/);
  });

  it('lead k3s and RKE2 to the names below the upstream, or to the flat ones', () => {
    const endpoint = [`http://127.0.0.1:${registry.port}`];
    expect(parse(textOf('k3s'))).toEqual({
      mirrors: {
        'k8s.gcr.io': { endpoint, rewrite: { '^(.*)$': 'k8s.gcr.io/$1' } },
        'docker.io': { endpoint, rewrite: { '^(.*)$': 'docker.io/$1' } },
        'harbor.site:8443': { endpoint, rewrite: { '^(.*)$': 'harbor.site_8443/$1' } },
        [`localhost:${registry.port}`]: { endpoint },
      },
    });
    expect(parse(textOf('rke2', ['flat'])).mirrors['k8s.gcr.io']).toEqual({ endpoint });
  });
});
