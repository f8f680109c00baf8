import { AppError } from '@airdock/core/errors';
import {
  type HeldPort,
  type HostPorts,
  renderHeldPorts,
  socketFolder,
  socketUnitOf,
  tmpfilesPath,
  unitFolder,
  unitOf,
} from '@airdock/core/host/held-port';
import { isOwn } from '@airdock/core/host/host-file';
import { assertHeldLocally } from '@airdock/ssh/tunnel/sshd-look';
import type { HostFile } from '../system/host-files.js';
import { type HostChange, hostChange } from '../work/host-work.js';
import type { ConfigurationWork } from './configuration-work.js';

const names: readonly HeldPort['name'][] = ['registry', 'packages'];
/** The files of a host that say which ports it holds. */
export const heldPortFiles = (): string[] => [tmpfilesPath, ...names.flatMap(pathsOf)];
const pathsOf = (name: HeldPort['name']): string[] => [
  `${unitFolder}/${socketUnitOf({ name })}`,
  `${unitFolder}/${unitOf({ name })}.service`,
];

// `start` fails where somebody else has the port.
const startScript = `
set -e
systemd-tmpfiles --create "$1"
shift
systemctl daemon-reload
systemctl -q enable "$@"`;

const stopScript = `
folder=$1
shift
for unit; do systemctl -q disable --now "$unit.socket" || :; systemctl -q stop "$unit.service" || :; done`;

const forgetScript = `
systemctl daemon-reload
rm -rf "$1"`;

/** The ports of a tunnel on 127.0.0.1 of the host; `packagePort` is null where no packages are served. */
export interface TunnelPorts {
  hostPort: number;
  packagePort: number | null;
}

/** The ports that a host holds for itself, so that none of its users can answer in the tunnel's place. */
export class HeldPorts {
  private readonly wanted: HeldPort[];
  private restarts: HeldPort[] = [];
  /** The sockets belong to another user now, so a tunnel that is open is still the old user's. */
  isMoved = false;

  constructor(
    private readonly work: ConfigurationWork,
    private readonly seen: HostPorts,
    { hostPort, packagePort }: TunnelPorts,
  ) {
    this.wanted = [{ name: 'registry', port: hostPort }];
    if (packagePort !== null) this.wanted.push({ name: 'packages', port: packagePort });
  }

  /** What the tunnel is to bind on this host. */
  get hostEnd(): 'socket' | 'port' {
    return this.seen.holder ? 'socket' : 'port';
  }

  /**
   * Writes and enables the units, and removes those that are no longer wanted. A host that cannot hold ports gets none.
   * Throws `host_command_failed`.
   */
  async configure(): Promise<HostChange[]> {
    const { holder, held } = this.seen;
    if (!holder) return this.unconfigure();
    const { files, dryRun } = this.work;
    const texts = renderHeldPorts(this.wanted, holder);
    const changed: HostChange[] = [];
    for (const [path, text] of texts) {
      const change = await this.work.write(await files.read(path), text, { hasHeader: true });
      if (change) changed.push(change);
      if (change?.action === 'change' && path === tmpfilesPath) this.isMoved = true;
    }
    const isChanged = (name: HeldPort['name']) => changed.some(({ target }) => pathsOf(name).includes(target));
    this.restarts = this.wanted.filter(
      ({ name, port }) => isChanged(name) || !held.some((one) => one.name === name && one.port === port),
    );
    changed.push(...this.restarts.map((one) => hostChange('service', 'restart', socketUnitOf(one))));
    if (changed.length > 0 && !dryRun) await this.run(startScript, tmpfilesPath, ...this.wanted.map(socketUnitOf));
    const removed = await this.unconfigure(names.filter((name) => !this.wanted.some((one) => one.name === name)));
    return [...changed, ...removed];
  }

  /**
   * Lets the host listen on the ports whose units have changed, and checks that it listens on its loopback only. Call
   * it when the program that held the ports before has closed them. Throws `host_port_taken`, `tunnel_exposed`.
   */
  async listen(): Promise<void> {
    if (this.work.dryRun) return;
    for (const held of this.restarts) {
      const unit = socketUnitOf(held);
      // The service has the old socket; the next connection starts it anew.
      const { exitCode, stderr } = await this.work.connection.exec(
        ['sh', '-c', 'systemctl stop "$1.socket" "$1.service" && systemctl start "$1.socket"', 'sh', unitOf(held)],
        { sudo: true, signal: this.work.signal },
      );
      if (exitCode !== 0)
        throw new AppError('host_port_taken', {
          detail: `${unit} does not get port ${held.port}: ${stderr.trim().slice(-300)}`,
          port: held.port,
        });
    }
    this.restarts = [];
    if (this.hostEnd === 'socket')
      for (const held of this.wanted) await assertHeldLocally(this.work.connection, held, this.work.signal);
  }

  /** Removes the units from the host, which closes their ports. */
  async unconfigure(which: readonly HeldPort['name'][] = names): Promise<HostChange[]> {
    const all = which.length === names.length;
    const paths = [...which.flatMap(pathsOf), ...(all ? [tmpfilesPath] : [])];
    const own: HostFile[] = [];
    for (const path of paths) {
      const file = await this.work.files.read(path);
      if (isOwn(file.text)) own.push(file);
    }
    if (own.length === 0) return [];
    if (!this.work.dryRun) await this.run(stopScript, socketFolder, ...which.map((name) => unitOf({ name })));
    const changes: (HostChange | undefined)[] = [];
    for (const file of own) changes.push(await this.work.revert(file, await this.work.files.before(file.path)));
    if (!this.work.dryRun)
      await this.run(forgetScript, ...(all ? [socketFolder] : which.map((name) => `${socketFolder}/${name}.sock`)));
    return changes.filter((one) => one !== undefined);
  }

  private async run(script: string, ...arguments_: string[]): Promise<void> {
    await this.work.connection.run(['sh', '-c', script, 'sh', ...arguments_], {
      sudo: true,
      signal: this.work.signal,
    });
  }
}
