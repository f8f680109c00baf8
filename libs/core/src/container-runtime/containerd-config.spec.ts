import fc from 'fast-check';
import { parse } from 'smol-toml';
import { describe, expect, it } from 'vitest';
import type { AppError } from '../errors.js';
import {
  ineffectiveHostsDir,
  renderHostsToml,
  sandboxImageOf,
  setHostsDir,
  setSandboxImage,
} from './containerd-config.js';

const dir = '/etc/containerd/certs.d';
const refusal = (action: () => unknown): string => {
  try {
    action();
  } catch (error) {
    expect((error as AppError).code).toBe('host_file_refused');
    return (error as AppError).message;
  }
  throw new Error('not refused');
};
type Registries = { plugins: Record<string, { registry: Record<string, unknown> }> };
const registryOf = (text: string, plugin: string) => (parse(text) as unknown as Registries).plugins[plugin]?.registry;

// What Debian's package brings.
const debian = `version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
`;
const generated1 = `disabled_plugins = []
oom_score = 0
version = 2
required_plugins = [
  # "a" ] is in a comment
  "x#y",
  'z]',
]

[plugins]

  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.6" # mine

    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = "" # none yet

      [plugins."io.containerd.grpc.v1.cri".registry.auths]

      [plugins."io.containerd.grpc.v1.cri".registry.mirrors]

    [plugins."io.containerd.grpc.v1.cri".x509_key_pair_streaming]
      tls_cert_file = """
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/not/this/one"
"""
`;
const generated2 = `version = 3

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'

    [plugins.'io.containerd.cri.v1.images'.registry]
      config_path = ''
`;

describe('setHostsDir', () => {
  it('sets the folder for containerd 1.x and changes nothing else', () => {
    const { text, hostsDir } = setHostsDir(generated1, 1);
    expect(hostsDir).toBe(dir);
    expect(text).toBe(generated1.replace('config_path = "" # none yet', `config_path = "${dir}" # none yet`));
  });

  it('sets the folder for containerd 2.x, whose plugin has another name', () => {
    const { text } = setHostsDir(generated2, 2);
    expect(registryOf(text, 'io.containerd.cri.v1.images')).toEqual({ config_path: dir });
    expect(text).toBe(generated2.replace("config_path = ''", `config_path = "${dir}"`));
  });

  it('adds the table at the end where there is none, and the key where only the table is there', () => {
    const { text } = setHostsDir(debian, 1);
    expect(text.startsWith(debian)).toBe(true);
    expect(registryOf(text, 'io.containerd.grpc.v1.cri')).toEqual({ config_path: dir });
    const table = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n';
    expect(setHostsDir(`${table}[plugins."io.containerd.grpc.v1.cri".registry.headers]\nx = ["1"]`, 1).text).toBe(
      `${table}  config_path = "${dir}"\n[plugins."io.containerd.grpc.v1.cri".registry.headers]\nx = ["1"]`,
    );
    expect(registryOf(setHostsDir(table.trimEnd(), 1).text, 'io.containerd.grpc.v1.cri')).toEqual({ config_path: dir });
  });

  it('writes a file that is not there, or has comments only, as the containerd of the host wants it', () => {
    expect(parse(setHostsDir(null, 1).text)).toEqual({
      version: 2,
      plugins: { 'io.containerd.grpc.v1.cri': { registry: { config_path: dir } } },
    });
    expect(parse(setHostsDir(null, 2).text)).toEqual({
      version: 3,
      plugins: { 'io.containerd.cri.v1.images': { registry: { config_path: dir } } },
    });
    expect(setHostsDir(null, 1).text).toMatch(/^# Written by Airdock/);
    expect(setHostsDir('# kept', 1).text).toMatch(/^# kept\nversion = 2\n/);
  });

  it('knows the format without a version, and dotted keys', () => {
    expect(registryOf(setHostsDir('root = "/x"\n', 1).text, 'cri')).toEqual({ config_path: dir });
    const dotted = 'version = 2\nplugins."io.containerd.grpc.v1.cri".registry.config_path = "" \n';
    expect(setHostsDir(dotted, 1).text).toBe(dotted.replace('""', `"${dir}"`));
  });

  it('uses the folder that is configured already', () => {
    const text = generated1.replace('config_path = ""', 'config_path = "/srv/certs.d:/etc/docker/certs.d"');
    expect(setHostsDir(text, 1)).toEqual({ text, hostsDir: '/srv/certs.d' });
    const written = setHostsDir(debian, 1).text;
    expect(setHostsDir(written, 1)).toEqual({ text: written, hostsDir: dir });
  });

  it('refuses what it cannot change safely, and says why', () => {
    expect(refusal(() => setHostsDir('version = ', 1))).toContain('not valid TOML');
    const mirrors =
      'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["https://m"]\n';
    expect(refusal(() => setHostsDir(mirrors, 1))).toContain('registry.mirrors');
    expect(
      refusal(() => setHostsDir('version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {sandbox_image = "x"}}\n', 1)),
    ).toContain('config_path');
    expect(refusal(() => setHostsDir('version = 2\n[[plugins]]\nx = 1\n', 1))).toContain('config_path');
  });

  it.each([
    ['credentials by host', 'configs."r.site:5000".auth', 'username = "u"'],
    ['credentials by URL', 'auths."https://r.site"', 'username = "u"'],
    ['headers', 'headers', '"X-Meta" = ["a"]'],
    ['a table without anything in it', 'mirrors', ''],
  ])('leaves %s where they are: containerd allows them beside config_path', (_, key, line) => {
    const text = `version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.${key}]\n${line}\n`;
    expect(registryOf(setHostsDir(text, 1).text, 'io.containerd.grpc.v1.cri')).toEqual({
      ...registryOf(text, 'io.containerd.grpc.v1.cri'),
      config_path: dir,
    });
  });

  it('keeps a byte order mark, and line ends of Windows', () => {
    const text = `\ufeff${debian.replaceAll('\n', '\r\n')}`;
    const merged = setHostsDir(text, 1).text;
    expect(merged.startsWith(text)).toBe(true);
    expect(registryOf(merged.slice(1), 'io.containerd.grpc.v1.cri')).toEqual({ config_path: dir });
    expect(setHostsDir(merged, 1).text).toBe(merged);
  });

  it('refuses certificates by host for containerd 1.x, which would start without its CRI; 2.x no longer knows them', () => {
    const tls = (plugin: string, version: number) =>
      `version = ${version}\n[plugins."${plugin}".registry.configs."r.site"]\n[plugins."${plugin}".registry.configs."r.site".tls]\ninsecure_skip_verify = true\n`;
    expect(refusal(() => setHostsDir(tls('io.containerd.grpc.v1.cri', 2), 1))).toContain('registry.configs.*.tls');
    expect(setHostsDir(tls('io.containerd.grpc.v1.cri', 2), 2).hostsDir).toBe(dir);
    expect(setHostsDir(tls('io.containerd.cri.v1.images', 3), 2).hostsDir).toBe(dir);
  });

  it('never changes more than the one value, whatever strings, comments and arrays are around it', () => {
    const piece = fc.constantFrom(
      'a = "x # [y]"',
      "b = 'c:\\d'",
      'c = [1, # ]\n 2]',
      'd = """\n[t]\n"quoted" \\""""',
      "e = '''\n''x'''",
      'f = {g = "}", h = [1]}',
      '# [comment]',
      '',
      '"g.h" = 1979-05-27T07:32:00Z',
    );
    const table = fc.constantFrom('[x]', '[ "y" . z ]', '[[w]]', "['plugins'.other]");
    const block = fc
      .tuple(table, fc.uniqueArray(piece, { maxLength: 5 }))
      .map(([name, lines]) => [name, ...lines].join('\n'));
    fc.assert(
      fc.property(
        fc.uniqueArray(block, { maxLength: 4, selector: (text) => text.split('\n')[0] }),
        fc.constantFrom('', debian.slice(debian.indexOf('['))),
        (blocks, tail) => {
          const text = ['version = 2', ...blocks, tail].join('\n');
          const merged = setHostsDir(text, 1).text;
          const expected = parse(text) as unknown as Registries;
          expected.plugins ??= {};
          const plugin = (expected.plugins['io.containerd.grpc.v1.cri'] ??= {} as never);
          plugin.registry = { config_path: dir };
          expect(parse(merged)).toEqual(expected);
          expect(merged.startsWith(text)).toBe(true);
          expect(setHostsDir(merged, 1).text).toBe(merged);
        },
      ),
    );
  });
});

describe('ineffectiveHostsDir', () => {
  const file = '/etc/containerd/config.toml';
  const dump = (plugin: string, registry: string, more = '') =>
    `# ${file}\nimports = ["${file}", "/etc/containerd/conf.d/nvidia.toml"]\n${more}\n[plugins."${plugin}".registry]\n${registry}\n`;
  const wrong = (text: string) => ineffectiveHostsDir({ file, text }, dir);

  it.each([
    ['io.containerd.grpc.v1.cri', `config_path = "${dir}"`],
    ['io.containerd.cri.v1.images', `config_path = "${dir}:/etc/docker/certs.d"`],
  ])('is content with %s that says %s', (plugin, registry) => expect(wrong(dump(plugin, registry))).toBeUndefined());

  it('says what is in force instead, and where that may come from', () => {
    expect(wrong(dump('io.containerd.grpc.v1.cri', 'config_path = ""'))).toBe(
      `containerd runs with ${file}, which imports /etc/containerd/conf.d/nvidia.toml, and has config_path = "" for its CRI, not ${dir}`,
    );
    expect(wrong(dump('io.containerd.grpc.v1.cri', 'config_path = "/srv/certs.d"'))).toContain('"/srv/certs.d"');
    expect(wrong(dump('io.containerd.grpc.v1.cri', `config_path = "${dir}.old"`))).toContain('.old');
    expect(wrong(dump('io.containerd.grpc.v1.cri', `config_path = "/srv/certs.d:${dir}"`))).toContain('"/srv/certs.d:');
    expect(wrong(dump('io.containerd.other', 'x = 1'))).toContain('has no CRI plugin');
    expect(ineffectiveHostsDir({ file: '/opt/c.toml', text: 'version = 2' }, dir)).toBe(
      'containerd runs with /opt/c.toml and has no CRI plugin',
    );
    expect(refusal(() => wrong('oops'))).toContain('not valid TOML');
  });

  // As containerd 2.4 prints it.
  const images = (more: string, registry: string) =>
    `version = 4\n[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = false\nimage_pull_with_sync_fs = false\n${more}\n[plugins.'io.containerd.cri.v1.images'.registry]\n${registry}`;
  const transfers = 'disable_snapshot_annotations = true\nmax_concurrent_downloads = 3\nuse_local_image_pull = false';
  const several = `config_path = '${dir}:/etc/docker/certs.d'`;

  it.each([`config_path = '/srv/certs.d:${dir}'`, several, `config_path = '${dir}:'`])(
    'says that the transfer service of containerd 2.1 takes %s for one folder',
    (registry) => {
      expect(wrong(images(transfers, registry))).toContain('use_local_image_pull');
      expect(wrong(images(transfers, `config_path = '${dir}'`))).toBeUndefined();
    },
  );

  it.each([
    [transfers.replace('false', 'true'), several],
    [transfers.replace('= 3', '= 10'), several],
    [transfers.replace('= true', '= false'), several],
    [transfers, `${several}\n[plugins.'io.containerd.cri.v1.images'.registry.configs.'r.site'.auth]\nusername = 'u'`],
  ])('is content with several folders where containerd does without it: %s', (more, registry) =>
    expect(wrong(images(more, registry))).toBeUndefined(),
  );
});

describe('renderHostsToml', () => {
  const of = (upstream: string, naming: ('flat' | 'upstream')[] = ['flat', 'upstream']) =>
    parse(renderHostsToml(upstream, 'localhost:5100', 5100, naming));

  it('leads an upstream to its own path, and nowhere else', () => {
    const server = 'http://127.0.0.1:5100/v2/k8s.gcr.io';
    const settings = { capabilities: ['pull', 'resolve'], override_path: true };
    expect(of('k8s.gcr.io')).toEqual({ server, ...settings, host: { [server]: settings } });
    expect(of('harbor.site:8443').server).toBe('http://127.0.0.1:5100/v2/harbor.site_8443');
  });

  it('leads to the flat names where there are no others, and for the local registry itself', () => {
    expect(of('k8s.gcr.io', ['flat']).server).toBe('http://127.0.0.1:5100/v2');
    expect(of('localhost:5100').server).toBe('http://127.0.0.1:5100/v2');
  });
});

describe('the pause image', () => {
  const image = 'localhost:5100/pause:3.2';

  it('is set where the version of the file wants it, and nothing else is changed', () => {
    const edited = setSandboxImage(debian, 1, image);
    expect(edited).toBe(debian.replace('grpc.v1.cri"]\n', `grpc.v1.cri"]\n    sandbox_image = "${image}"\n`));
    expect(setSandboxImage(edited, 1, image)).toBe(edited);
    expect(setSandboxImage(generated1, 1, image)).toBe(generated1.replace('registry.k8s.io/pause:3.6', image));
    const third = setSandboxImage('version = 3\n', 2, image);
    expect(parse(third)).toEqual({
      version: 3,
      plugins: { 'io.containerd.cri.v1.images': { pinned_images: { sandbox: image } } },
    });
    expect(sandboxImageOf(third, 2)).toBe(image);
  });

  it('is set in what configure-hosts writes, and known there', () => {
    for (const [before, major] of [
      [null, 1],
      [null, 2],
      ['', 1],
    ] as const) {
      const { text } = setHostsDir(before, major);
      expect(sandboxImageOf(text, major)).toBeUndefined();
      expect(sandboxImageOf(setSandboxImage(text, major, image), major)).toBe(image);
      expect(sandboxImageOf(setSandboxImage(before, major, image), major)).toBe(image);
    }
    expect(refusal(() => setSandboxImage('oops', 1, image))).toContain('not valid TOML');
  });
});
