/** Folders of packages as a release brings them, made of real packages with the tools that sites use. */
import { execFile } from 'node:child_process';
import { copyFile, mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { tempDir } from '../servers.js';
import { dockerArchivesDir } from './rootfs.js';

const run = promisify(execFile);

/** Debian's Docker packages, as `docker.io` needs them. A lab must have been started. */
export async function copyDockerPackages(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  for (const name of await readdir(dockerArchivesDir())) await copyFile(join(dockerArchivesDir(), name), join(folder, name));
}

/** A package that installs one file, `/usr/share/NAME`, and needs others. */
export async function makeDeb(folder: string, name: string, depends: readonly string[] = []): Promise<void> {
  await using work = await tempDir('deb');
  await mkdir(join(work.path, 'DEBIAN'), { recursive: true });
  await mkdir(join(work.path, 'usr/share'), { recursive: true });
  const control = {
    ...{ Package: name, Version: '1.0', Architecture: 'all', Maintainer: 'lab <lab@airdock.invalid>' },
    ...(depends.length > 0 ? { Depends: depends.join(', ') } : {}),
    Description: 'a package of the lab',
  };
  await writeFile(
    join(work.path, 'DEBIAN/control'),
    Object.entries(control)
      .map(([key, value]) => `${key}: ${value}\n`)
      .join(''),
  );
  await writeFile(join(work.path, 'usr/share', name), 'from an apt repository\n');
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
  const defines = { _topdir: work.path, _rpmdir: folder, _rpmfilename: '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm', _dbpath: join(work.path, 'db') };
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
