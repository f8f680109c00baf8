import { AppError } from '@airdock/core/errors';
import type { HostPorts } from '@airdock/core/host/held-port';
import { firstCommandMs } from '@airdock/ssh/command/command-time';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { mayBindSockets, tryPort } from '@airdock/ssh/tunnel/tunnel';
import { DockerHost } from '../runtime/docker-host.js';
import { type SystemFacts, systemFacts } from '../system/system-facts.js';
import { factsOf, type HostAnswer, type HostFacts, noSockets, offsetOf, parseAnswer, portsOf } from './host-answer.js';
import { checkHost, type HostFinding } from './host-checks.js';
import { hostScript } from './host-script.js';

/** What one look at a host found. */
export interface Inspection {
  facts: HostFacts;
  system: SystemFacts;
  checks: HostFinding[];
  hasDocker: boolean;
  isPortTaken: boolean;
  ports: HostPorts;
  /** Why a tunnel would not come up, as far as it was tried. */
  refusal: AppError | undefined;
  /**
   * The registry has answered the host through our own tunnel, or the host has no program to ask with. Undefined where
   * the registry was not asked.
   */
  canReachRegistry: boolean | undefined;
}

/** The whole script, which takes a second or two where nothing hangs. */
const lookMs = 90_000;

/** How a host is looked at. */
export interface Look {
  /** The registry's on the host. */
  port: number;
  /** The listener on the port is our own tunnel. */
  ownsPort: boolean;
  /** Let the host ask the registry through the tunnel. */
  asksRegistry: boolean;
  /** What a tunnel will need of sshd is tried: ports, unless the host holds them, and sockets. */
  tries: { ports: readonly number[]; sockets: boolean };
  seenAt: string;
}

/**
 * Looks at a host: how it is reached, what it is, what it has, and what is in the way. Changes nothing. Throws
 * `host_sudo_failed`, `host_timeout`, and what breaks the connection.
 */
export async function inspectHost(connection: SshConnection, look: Look, signal: AbortSignal): Promise<Inspection> {
  const { port, ownsPort, asksRegistry, tries, seenAt } = look;
  const elevation = await connection.elevation(signal);
  // Through sudo there is no way to Docker's API, so the script asks Docker's program.
  const asksDocker = elevation === 'root';
  const { answer, roundTripMs, clockOffset } = await runHostScript(connection, look, asksDocker, signal);
  const facts = factsOf(answer, seenAt);
  const listening = new Set([
    ...answer.all('listens').map((hex) => Number.parseInt(hex, 16)),
    ...answer.all('listensOn').map(Number),
  ]);
  const ports = portsOf(answer);
  if (ports.holder && tries.sockets && !(await mayBindSockets(connection, signal)))
    Object.assign(ports, { holder: undefined, why: noSockets });
  const isHeld = ports.held.some((held) => held.name === 'registry' && held.port === port);
  const isPortTaken = listening.has(port) && !ownsPort && !isHeld;
  const [exposed] = answer.all('exposed');
  const refusal =
    exposed === undefined
      ? await tryPorts(connection, ports, tries.ports, listening)
      : new AppError('tunnel_exposed', { detail: `${connection.where}: ${exposed}` });
  const isForwardingTried = tries.sockets || (!ports.holder && tries.ports.length > 0);
  const registryPortUse = isPortTaken ? 'taken' : isHeld ? 'held' : ownsPort ? 'tunnel' : 'free';
  const seen = { connection, answer, facts, elevation, roundTripMs, clockOffset, listening, ports, refusal };
  const checks = await checkHost({ ...seen, registryPort: port, registryPortUse, isForwardingTried }, signal);
  return {
    facts,
    system: systemFacts(answer.text),
    checks,
    hasDocker: facts.dockerVersion !== null,
    isPortTaken,
    ports,
    refusal,
    canReachRegistry: asksRegistry ? ['', '200'].includes(answer.text('registryStatus')) : undefined,
  };
}

/** What a host has answered, how fast, and how far its clock is from ours. */
interface TimedAnswer {
  answer: HostAnswer;
  roundTripMs: number;
  clockOffset: number | undefined;
}

async function runHostScript(
  connection: SshConnection,
  { port, asksRegistry }: Look,
  asksDocker: boolean,
  signal: AbortSignal,
): Promise<TimedAnswer> {
  // The script prints the time first.
  const askedAt = Date.now();
  let answeredAt: number | undefined;
  const silence = new AbortController();
  const timer = setTimeout(
    () => silence.abort(new AppError('host_timeout', { detail: `sh did nothing for ${firstCommandMs / 1000} s` })),
    firstCommandMs,
  );
  const onOutput = () => {
    answeredAt ??= Date.now();
    clearTimeout(timer);
  };
  const options = {
    stdin: hostScript,
    sudo: true,
    deadlineMs: lookMs,
    onOutput,
    signal: AbortSignal.any([signal, silence.signal]),
  };
  const [output, dockerVersion] = await Promise.all([
    connection.run(['sh', '-s', '--', asksRegistry ? String(port) : '', asksDocker ? 'yes' : ''], options),
    asksDocker ? new DockerHost(connection, signal).version() : undefined,
    // A second session, which configuring will need, shows how many sessions sshd allows.
    connection.exec(['true'], { signal }),
  ]).finally(() => clearTimeout(timer));
  const answer = parseAnswer(dockerVersion ? `docker=${dockerVersion}\n${output}` : output);
  const roundTripMs = (answeredAt ?? Date.now()) - askedAt;
  return { answer, roundTripMs, clockOffset: offsetOf(answer.text('time'), askedAt + roundTripMs / 2) };
}

/**
 * Why sshd refuses a tunnel on these ports. A port that is taken is reported elsewhere, and one that the host holds
 * needs no trial. Throws what breaks the connection.
 */
async function tryPorts(
  connection: SshConnection,
  { holder }: HostPorts,
  ports: readonly number[],
  listening: ReadonlySet<number>,
): Promise<AppError | undefined> {
  for (const port of holder ? [] : ports) {
    if (listening.has(port)) continue;
    try {
      await tryPort(connection, port);
    } catch (error) {
      if (error instanceof AppError && ['host_forwarding_refused', 'tunnel_exposed'].includes(error.code)) return error;
      if (!(error instanceof AppError) || !['host_port_taken', 'tunnel_failed'].includes(error.code)) throw error;
    }
  }
  return undefined;
}
