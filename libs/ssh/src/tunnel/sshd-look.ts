/**
 * What a host's sshd binds, and what it refuses: seen on the host, since SSH says neither (RFC 4254 section 7.1 has a
 * yes and a no).
 */
import { AppError } from '@airdock/core/errors';
import { type HeldPort, socketUnitOf } from '@airdock/core/host/held-port';
import { cleanLine } from '@airdock/core/host/host-text';
import type { SshConnection } from '../connection/connection.js';

const path = 'PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"; export PATH LC_ALL=C';
const lookMs = 10_000;
const maxLines = 200;

// `address=` of what listens on the port $1; in /proc/net/tcp it is hexadecimal, and state 0A is LISTEN.
const listenersScript = `${path}
if command -v ss >/dev/null && found=$(ss -ltn "sport = :$1" 2>/dev/null); then
  printf '%s\\n' "$found" | while read -r state _ _ local _; do [ "$state" != LISTEN ] || echo "address=\${local%:*}"; done
else
  port=$(printf '%04X' "$1")
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | while read -r _ local _ state _; do
    case "$state \${local##*:}" in "0A $port") echo "hex=\${local%:*}" ;; esac
  done
fi`;

/** The addresses on which somebody listens on a port of the host, as the host writes them. */
export async function listenersOn(connection: SshConnection, port: number, signal?: AbortSignal): Promise<string[]> {
  const output = await connection.run(['sh', '-c', listenersScript, 'sh', String(port)], {
    signal,
    stallTimeoutMs: lookMs,
  });
  return [...new Set(valuesOf(output, 'address').concat(valuesOf(output, 'hex').map(fromHex)))];
}

// Columns of /proc/net/tcp: the eighth is the user whose socket it is.
const ownScript = `${path}
own=$(id -u)
port=$(printf '%04X' "$1")
while read -r _ local _ state _ _ _ uid _; do
  case "$state $local $uid" in "0A 0100007F:$port $own") echo own=yes ;; esac
done </proc/net/tcp`;

/** Whether it is the login user's own process, as its sshd is, that listens on a port of 127.0.0.1. */
export async function isOwnListener(connection: SshConnection, port: number): Promise<boolean> {
  const output = await connection.run(['sh', '-c', ownScript, 'sh', String(port)], { stallTimeoutMs: lookMs });
  return valuesOf(output, 'own').length > 0;
}

/** As ss and systemd write it: `127.0.0.1`, `[::1]`, `127.0.0.1%lo`, `[::ffff:127.0.0.1]`. */
export const isLoopback = (address: string): boolean =>
  /^(?:::ffff:)?127\.\d{1,3}\.\d{1,3}\.\d{1,3}$|^::1$/i.test(address.replaceAll(/[[\]]|%.*$/g, ''));

/** The kernel writes addresses as words of the machine, which are little-endian on all that are supported. */
function fromHex(text: string): string {
  const bytes = [...(text.match(/.{8}/g) ?? [])].flatMap((word) => [6, 4, 2, 0].map((at) => word.slice(at, at + 2)));
  if (bytes.length === 4) return bytes.map((byte) => Number.parseInt(byte, 16)).join('.');
  const hex = bytes.join('').toLowerCase();
  if (hex === `${'0'.repeat(31)}1`) return '[::1]';
  if (hex.startsWith(`${'0'.repeat(20)}ffff`))
    return `[::ffff:${bytes
      .slice(12)
      .map((byte) => Number.parseInt(byte, 16))
      .join('.')}]`;
  return `[${hex.match(/.{4}/g)?.join(':')}]`;
}

// What the unit $1 is to listen on, and what systemd listens on at port $2, perhaps still.
const heldScript = `${path}
systemctl show -p Listen -p DropInPaths "$1" 2>/dev/null | sed -n 's/^Listen[A-Za-z]*=\\([^ ]*\\).*/address=\\1/p; s/^DropInPaths=\\(..*\\)/files=\\1/p'
! command -v ss >/dev/null || ss -ltnp "sport = :$2" 2>/dev/null | while read -r _ _ _ local _ users; do
  case "$users" in *'"systemd"'*) echo "address=$local" ;; esac
done`;

/**
 * Throws `tunnel_exposed` when a unit that holds a port of the host for us listens on more than its loopback, e.g. by a
 * drop-in.
 */
export async function assertHeldLocally(
  connection: SshConnection,
  held: Pick<HeldPort, 'name' | 'port'>,
  signal?: AbortSignal,
): Promise<void> {
  const unit = socketUnitOf(held);
  const options = { sudo: true, signal, stallTimeoutMs: lookMs };
  const output = await connection.run(['sh', '-c', heldScript, 'sh', unit, String(held.port)], options);
  const wide = valuesOf(output, 'address').filter((one) => !isLoopback(one.replace(/:\d+$/, '')));
  const files = valuesOf(output, 'files');
  if (wide.length > 0)
    throw new AppError('tunnel_exposed', {
      detail: `${connection.where}: ${unit} listens on ${listOf(wide)}${files.length > 0 ? `, by ${listOf(files)}` : ''}`,
    });
}

// What is in force for $1 who comes from $2, where it is said, and what stands before keys in authorized_keys.
const settingsScript = `${path}
user=$1 from=$2 names=$3
sshd -T -C "user=$user,host=$from,addr=$from" 2>/dev/null | grep -iE "^($names) " | sed 's/^/value=/'
grep -inEs "^[[:space:]]*($names)[[:space:]=]" /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*.conf /usr/etc/ssh/sshd_config /dev/null | sed 's/^/line=/'
home=$(getent passwd "$user" | cut -d: -f6)
for file in "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; do
  grep -oEs '^[^#]*(ssh-|ecdsa-|sk-)' "$file" | grep -oE '(^|,)(restrict|no-port-forwarding|permitlisten=[^, ]*)' | sed "s|^,*|key=$file: |"
done
exit 0`;

/** Names, and values that refuse nothing. OpenSSH holds those for ports against sockets too. */
const ports = {
  names: ['AllowTcpForwarding', 'PermitListen', 'DisableForwarding'],
  usual: [
    'allowtcpforwarding yes',
    'allowtcpforwarding all',
    'allowtcpforwarding remote',
    'permitlisten any',
    'disableforwarding no',
  ],
};
const sockets = ['yes', 'all', 'remote'].map((value) => `allowstreamlocalforwarding ${value}`);
const settings = {
  tcp: ports,
  streamLocal: { names: ['AllowStreamLocalForwarding', ...ports.names], usual: [...sockets, ...ports.usual] },
  address: { names: ['GatewayPorts'], usual: ['gatewayports no'] },
  sessions: { names: ['MaxSessions'], usual: [] as string[] },
};

/**
 * Which settings of the host's sshd make it refuse, or open too wide, what `about` says, in words: those in force for
 * this login, where they are said, and options of keys. Empty where none can be seen.
 */
export async function settingsOf(
  connection: SshConnection,
  about: keyof typeof settings,
  signal?: AbortSignal,
): Promise<string> {
  const { names, usual } = settings[about];
  const options = { signal, stallTimeoutMs: lookMs };
  const [from = ''] = (await connection.run(['sh', '-c', 'echo "$SSH_CONNECTION"'], options)).split(' ');
  const address = /^[0-9A-Fa-f.:]{2,45}$/.test(from) ? from : '127.0.0.1';
  const output = await connection.run(
    ['sh', '-c', settingsScript, 'sh', connection.username, address, names.join('|')],
    { sudo: true, ...options },
  );
  const values = valuesOf(output, 'value').filter((value) => !usual.some((one) => one === value.toLowerCase()));
  const nameOf = (value: string) =>
    names.find((name) => value.toLowerCase().startsWith(`${name.toLowerCase()} `)) ?? '';
  // `FILE:LINE:TEXT`, where the text may have colons too.
  const lines = valuesOf(output, 'line').map((line) => {
    const [file, at, ...text] = line.split(':');
    const setting = text.join(':').trim().toLowerCase();
    return { place: `${file}:${at}`, setting: setting.replace(/[\s=]+/, ' ') };
  });
  const placeOf = (value: string) =>
    lines.filter(({ setting }) => setting === value.toLowerCase()).map(({ place }) => place);
  const inForce = values.map(
    (value) =>
      `${nameOf(value)} ${value.slice(nameOf(value).length + 1)}${placeOf(value).length > 0 ? ` (${listOf(placeOf(value))})` : ''}`,
  );
  const keys = about === 'tcp' || about === 'streamLocal' ? valuesOf(output, 'key') : [];
  return listOf([...inForce, ...new Set(keys)]);
}

/** As `settingsOf`, with what could be set where nothing of it can be seen. */
export async function refusalOf(
  connection: SshConnection,
  about: keyof typeof settings,
  signal?: AbortSignal,
): Promise<string> {
  const seen = await settingsOf(connection, about, signal).catch((error: unknown) => {
    signal?.throwIfAborted();
    // Without sudo there is no look at them; what is refused is refused.
    if (error instanceof AppError && error.code !== 'host_unreachable') return '';
    throw error;
  });
  return (
    seen ||
    `of its settings none was seen that does it; see ${settings[about].names.join(', ')}, Match blocks, and options of keys in authorized_keys`
  );
}

const listOf = (texts: readonly string[]): string => cleanLine(texts.slice(0, 5).join(', '), 500);

/** Of lines `key=value`. */
const valuesOf = (output: string, key: string): string[] =>
  output
    .split('\n', maxLines)
    .filter((line) => line.startsWith(`${key}=`))
    .map((line) => cleanLine(line.slice(key.length + 1)));
