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
import type { HostFile } from '@airdock/host/system/host-files';
import { assertHeldLocally } from '@airdock/ssh/tunnel/sshd-look';
import type { Change } from '../host/host.schema.js';
import type { Ends } from '../tunnel/tunnel.service.js';
import { change, type HostSteps } from './host-steps.js';

const names: readonly HeldPort['name'][] = ['registry', 'packages'];
/** What is read of every host. */
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

/** The ports that a host holds for itself, so that none of its users can answer in the tunnel's place. */
export class HeldPorts {
  private readonly wanted: HeldPort[];
  private restarts: HeldPort[] = [];
  /** The sockets are another user's now: a tunnel that is open is still the old one's. */
  isMoved = false;

  constructor(
    private readonly steps: HostSteps,
    private readonly seen: HostPorts,
    { hostPort, packagePort }: Pick<Ends, 'hostPort' | 'packagePort'>,
  ) {
    this.wanted = [{ name: 'registry', port: hostPort }];
    if (packagePort !== null) this.wanted.push({ name: 'packages', port: packagePort });
  }

  /** What the tunnel is to bind on this host. */
  get hostEnd(): Ends['hostEnd'] {
    return this.seen.holder ? 'socket' : 'port';
  }

  /**
   * Brings the units, from the next boot on; one that is no longer wanted goes. A host that cannot hold ports is left
   * without. Throws `host_command_failed`.
   */
  async bring(): Promise<Change[]> {
    const { holder, held } = this.seen;
    if (!holder) return this.takeBack();
    const { files, dryRun } = this.steps;
    const texts = renderHeldPorts(this.wanted, holder);
    const changed: Change[] = [];
    for (const [path, text] of texts) {
      const brought = await this.steps.bring(await files.read(path), text, { hasHeader: true });
      if (brought) changed.push(brought);
      if (brought?.action === 'change' && path === tmpfilesPath) this.isMoved = true;
    }
    const isChanged = (name: HeldPort['name']) => changed.some(({ target }) => pathsOf(name).includes(target));
    this.restarts = this.wanted.filter(
      ({ name, port }) => isChanged(name) || !held.some((one) => one.name === name && one.port === port),
    );
    changed.push(...this.restarts.map((one) => change('service', 'restart', socketUnitOf(one))));
    if (changed.length > 0 && !dryRun) await this.run(startScript, tmpfilesPath, ...this.wanted.map(socketUnitOf));
    const gone = await this.takeBack(names.filter((name) => !this.wanted.some((one) => one.name === name)));
    return [...changed, ...gone];
  }

  /**
   * The host listens, once whatever held the ports before has let go, and on its loopback only. Throws
   * `host_port_taken`, `tunnel_exposed`.
   */
  async listen(): Promise<void> {
    if (this.steps.dryRun) return;
    for (const held of this.restarts) {
      const unit = socketUnitOf(held);
      // The service has the old socket; the next connection starts it anew.
      const { exitCode, stderr } = await this.steps.connection.exec(
        ['sh', '-c', 'systemctl stop "$1.socket" "$1.service" && systemctl start "$1.socket"', 'sh', unitOf(held)],
        { sudo: true, signal: this.steps.signal },
      );
      if (exitCode !== 0)
        throw new AppError('host_port_taken', {
          detail: `${unit} does not get port ${held.port}: ${stderr.trim().slice(-300)}`,
          port: held.port,
        });
    }
    this.restarts = [];
    if (this.hostEnd === 'socket')
      for (const held of this.wanted) await assertHeldLocally(this.steps.connection, held, this.steps.signal);
  }

  /** Takes the units off the host, and gives their ports up. */
  async takeBack(which: readonly HeldPort['name'][] = names): Promise<Change[]> {
    const all = which.length === names.length;
    const paths = [...which.flatMap(pathsOf), ...(all ? [tmpfilesPath] : [])];
    const own: HostFile[] = [];
    for (const path of paths) {
      const file = await this.steps.files.read(path);
      if (isOwn(file.text)) own.push(file);
    }
    if (own.length === 0) return [];
    if (!this.steps.dryRun) await this.run(stopScript, socketFolder, ...which.map((name) => unitOf({ name })));
    const changes: (Change | undefined)[] = [];
    for (const file of own) changes.push(await this.steps.takeBack(file, await this.steps.files.before(file.path)));
    if (!this.steps.dryRun)
      await this.run(forgetScript, ...(all ? [socketFolder] : which.map((name) => `${socketFolder}/${name}.sock`)));
    return changes.filter((one) => one !== undefined);
  }

  private async run(script: string, ...arguments_: string[]): Promise<void> {
    await this.steps.connection.run(['sh', '-c', script, 'sh', ...arguments_], {
      sudo: true,
      signal: this.steps.signal,
    });
  }
}
