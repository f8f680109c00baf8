import { ownHeader } from './host-file.js';

/**
 * A port of a host that is the host's own from boot on: a socket unit of systemd listens there and hands connections to
 * a Unix socket, which the tunnel binds. While the tunnel is down whoever connects is sent away at once, and no user of
 * the host can answer in its place.
 */
export interface HeldPort {
  /** What it leads to. */
  name: 'registry' | 'packages';
  port: number;
}

/** What a host has to hold ports with. */
export interface PortHolder {
  /** Where systemd-socket-proxyd(8) is. */
  proxyd: string;
  systemdVersion: number;
  hasIpv6: boolean;
  /** Of the user that logs in over SSH, whose the sockets of the tunnel are. */
  userId: number;
}

/** How the host can hold ports for itself, and does. */
export interface HostPorts {
  /** Undefined where it cannot: then `why` says it. */
  holder: PortHolder | undefined;
  why: string;
  /** By units of ours that are enabled and active. */
  held: HeldPort[];
}

/** The folder of the tunnel's sockets on hosts. Only the login user, and root, get in. */
export const socketFolder = '/run/airdock';
/** The Unix socket on the host that connections to the port are handed to. */
export const hostSocketOf = ({ name }: Pick<HeldPort, 'name'>): string => `${socketFolder}/${name}.sock`;
/** The systemd unit that hands connections over. */
export const unitOf = ({ name }: Pick<HeldPort, 'name'>): string => `airdock-${name}`;
/** The systemd unit that listens on the port. */
export const socketUnitOf = (held: Pick<HeldPort, 'name'>): string => `${unitOf(held)}.socket`;
/** Where units of the administrator lie. */
export const unitFolder = '/etc/systemd/system';
/** What makes the folder of the sockets at each boot. */
export const tmpfilesPath = '/etc/tmpfiles.d/airdock.conf';

/** Connections at a time; each of a proxy takes six descriptors. */
const maxConnections = 1_024;
const maxDescriptors = 8_192;

/** The files that hold ports, by path. */
export function renderHeldPorts(ports: readonly HeldPort[], holder: PortHolder): Map<string, string> {
  const files = new Map([[tmpfilesPath, `${ownHeader}\nd ${socketFolder} 0700 ${holder.userId} 0 -\n`]]);
  for (const held of ports) {
    files.set(`${unitFolder}/${socketUnitOf(held)}`, renderSocket(held, holder));
    files.set(`${unitFolder}/${unitOf(held)}.service`, renderService(held, holder));
  }
  return files;
}

/**
 * Both addresses of `localhost`: whoever could answer at one of them would be asked by some programs. See
 * systemd.socket(5).
 */
function renderSocket({ name, port }: HeldPort, { hasIpv6 }: PortHolder): string {
  return `${ownHeader}
[Unit]
Description=Airdock: the port of the DU's ${name} on this host

[Socket]
ListenStream=127.0.0.1:${port}
${hasIpv6 ? `ListenStream=[::1]:${port}\n` : ''}FreeBind=yes
NoDelay=yes
Backlog=1024
# However often the service ends: a port that is given up is anybody's.
TriggerLimitIntervalSec=0

[Install]
WantedBy=sockets.target
`;
}

/**
 * Without rights: the listening socket comes from systemd, and the tunnel's socket is the user's. See systemd.exec(5).
 */
function renderService({ name }: HeldPort, { proxyd, systemdVersion, userId }: PortHolder): string {
  const limit = systemdVersion >= 233 ? ` --connections-max=${maxConnections}` : '';
  return `${ownHeader}
[Unit]
Description=Airdock: the way to the DU's ${name}, through the tunnel
Requires=${socketUnitOf({ name })}
After=${socketUnitOf({ name })}
StartLimitIntervalSec=0

[Service]
ExecStart=${proxyd}${limit} ${hostSocketOf({ name })}
User=${userId}
LimitNOFILE=${maxDescriptors}
CapabilityBoundingSet=
NoNewPrivileges=yes
PrivateDevices=yes
PrivateNetwork=yes
PrivateTmp=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
`;
}
