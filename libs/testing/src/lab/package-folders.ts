/** Folders of packages as a release brings them, made of real packages with the tools that sites use. */
import { execFile } from 'node:child_process';
import { copyFile, mkdir, readdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { tempDir } from '../servers.js';
import { dockerArchivesDir } from './rootfs.js';

const run = promisify(execFile);

/** Debian's Docker packages, as `docker.io` needs them. A lab must have been started. */
export async function copyDockerPackages(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  for (const name of await readdir(dockerArchivesDir()))
    await copyFile(join(dockerArchivesDir(), name), join(folder, name));
}

export interface DebOptions {
  /** Other packages that it needs. */
  depends?: readonly string[];
  /** Default 1.0. */
  version?: string;
  /** What it installs, by path without the first slash. Default `usr/share/NAME`. */
  files?: DebFiles;
}
type DebFiles = Record<string, { content: string; mode?: number }>;

/** A package for every architecture. */
export async function makeDeb(folder: string, name: string, options: DebOptions = {}): Promise<void> {
  const { depends = [], version = '1.0' } = options;
  const files: DebFiles = options.files ?? { [`usr/share/${name}`]: { content: 'from an apt repository\n' } };
  await using work = await tempDir('deb');
  const control = {
    ...{ Package: name, Version: version, Architecture: 'all', Maintainer: 'lab <lab@airdock.invalid>' },
    ...(depends.length > 0 ? { Depends: depends.join(', ') } : {}),
    Description: 'a package of the lab',
  };
  const fields = Object.entries(control).map(([key, value]) => `${key}: ${value}\n`);
  const members: DebFiles = { ...files, 'DEBIAN/control': { content: fields.join('') } };
  for (const [path, { content, mode = 0o644 }] of Object.entries(members)) {
    await mkdir(dirname(join(work.path, path)), { recursive: true });
    await writeFile(join(work.path, path), content, { mode });
  }
  await mkdir(folder, { recursive: true });
  await run('dpkg-deb', ['--root-owner-group', '--build', work.path, folder]);
}

/** The same for rpm. */
export async function makeRpm(folder: string, name: string): Promise<void> {
  await using work = await tempDir('rpm');
  const spec = `Name: ${name}
Version: 1.0
Release: 1
Summary: a package of the lab
License: Apache-2.0
BuildArch: noarch
%description
A package of the lab.
%install
mkdir -p %{buildroot}/usr/share
echo from a yum repository >%{buildroot}/usr/share/${name}
%files
/usr/share/${name}
`;
  await writeFile(join(work.path, 'lab.spec'), spec);
  await mkdir(folder, { recursive: true });
  const defines = {
    _topdir: work.path,
    _rpmdir: folder,
    _rpmfilename: '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm',
    _dbpath: join(work.path, 'db'),
  };
  const args = Object.entries(defines).flatMap(([key, value]) => ['--define', `${key} ${value}`]);
  await run('rpmbuild', [...args, '-bb', join(work.path, 'lab.spec')], { timeout: 60_000 });
}

/** What apt asks a flat folder for. */
export async function addAptMetadata(folder: string): Promise<void> {
  const { stdout } = await run('apt-ftparchive', ['packages', '.'], { cwd: folder, timeout: 60_000 });
  await writeFile(join(folder, 'Packages'), stdout);
}

/** What dnf asks a folder for. */
export async function addYumMetadata(folder: string): Promise<void> {
  await run('createrepo_c', ['--quiet', folder], { timeout: 60_000 });
}
