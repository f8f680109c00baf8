/**
 * An SSH server that lets everybody in with a password and then breaks the rules, message by message (RFC 4253, 4254).
 */
import type { AddressInfo, Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import ssh2, { type Connection, type ServerChannel } from 'ssh2';
import { printed, readCommand } from './ssh-command.js';
import { sshKeyPair } from './ssh-keys.js';

/** Numbers of messages. */
export const sshMessage = {
  disconnect: 1,
  ignore: 2,
  unimplemented: 3,
  debug: 4,
  extInfo: 7,
  kexInit: 20,
  globalRequest: 80,
  requestSuccess: 81,
  requestFailure: 82,
  channelOpen: 90,
  channelOpenConfirmation: 91,
  channelOpenFailure: 92,
  channelWindowAdjust: 93,
  channelData: 94,
  channelExtendedData: 95,
  channelEof: 96,
  channelClose: 97,
  channelRequest: 98,
  channelSuccess: 99,
  channelFailure: 100,
} as const;

interface Protocol {
  _packetRW: { write: { allocStart: number; alloc(length: number): Buffer; finalize(packet: Buffer): Buffer } };
  _cipher: { encrypt(packet: Buffer): void };
  _kexinit: unknown;
  _handlers: Record<string, (protocol: Protocol, ...args: never[]) => void>;
  channelOpenConfirm(remote: number, local: number, window: number, packetSize: number): void;
  rekey(): void;
}

/** What a message is made of: a byte, a uint32 (RFC 4251 section 5), a string with its length. */
export type Field = { byte: number } | number | string | Buffer;

/** The body of a message. */
export function messageOf(type: number, ...fields: Field[]): Buffer {
  const parts = fields.flatMap((field) => {
    if (typeof field === 'object' && 'byte' in field) return [Buffer.from([field.byte])];
    const length = Buffer.alloc(4);
    length.writeUInt32BE(typeof field === 'number' ? field >>> 0 : Buffer.byteLength(field));
    return typeof field === 'number' ? [length] : [length, Buffer.from(field)];
  });
  return Buffer.concat([Buffer.from([type]), ...parts]);
}

/** The server's end of one connection. */
export class HostileConnection {
  constructor(readonly connection: Connection) {}

  private get protocol(): Protocol {
    return (this.connection as unknown as { _protocol: Protocol })._protocol;
  }

  get socket(): Socket {
    return (this.connection as unknown as { _sock: Socket })._sock;
  }

  /** Sends a message as it is. */
  send(body: Buffer): void {
    const { write } = this.protocol._packetRW;
    const packet = write.alloc(body.length);
    packet.set(body, write.allocStart);
    this.protocol._cipher.encrypt(write.finalize(packet));
  }

  /** Sends messages in one segment. */
  sendTogether(bodies: Buffer[]): void {
    this.socket.cork();
    for (const body of bodies) this.send(body);
    this.socket.uncork();
  }

  /** Opens a channel through the tunnel that listens on a port. */
  open(port: number, sender: number, { window = 2 ** 21, packetSize = 2 ** 15 } = {}): void {
    this.send(
      messageOf(
        sshMessage.channelOpen,
        'forwarded-tcpip',
        sender,
        window,
        packetSize,
        '127.0.0.1',
        port,
        '127.0.0.1',
        40_000 + sender,
      ),
    );
  }

  /** Begins a key exchange. */
  rekey(): void {
    this.protocol.rekey();
  }

  /** Hears of each message of the other side that ssh2 knows by this name, instead of ssh2. */
  on(name: string, handler: (...args: never[]) => void): void {
    const { protocol } = this;
    protocol._handlers[name] = (_protocol, ...args) => handler(...args);
  }

  /** What is said of the channels that the other side opens. */
  confirmWith({ window, packetSize }: { window?: number | undefined; packetSize?: number | undefined }): void {
    const { protocol } = this;
    const confirm = protocol.channelOpenConfirm.bind(protocol);
    protocol.channelOpenConfirm = (remote, local, usualWindow, usualSize) =>
      confirm(remote, local, window ?? usualWindow, packetSize ?? usualSize);
  }
}

export interface HostileSshOptions {
  /** Of the channels that the other side opens. */
  window?: number;
  packetSize?: number;
  /** Called instead of letting somebody in. */
  onAuthentication?: (host: HostileConnection) => void;
  /** Called when somebody has logged in. */
  onLogin?: (host: HostileConnection) => void;
  /** Called when a port was asked for. */
  onForward?: (host: HostileConnection, port: number) => void;
  /** Serves a command, whose output is to have a mark; by default it gets `answer`. */
  onExec?: (channel: ServerChannel, command: string, mark: string | undefined, host: HostileConnection) => void;
  /** What a command prints, given all of its input. */
  answer?: (command: string, input: string) => string | undefined;
}

export interface HostileSshServer extends AsyncDisposable {
  port: number;
  /** A public key line. */
  hostKey: string;
  commands: string[];
  connections: Set<HostileConnection>;
  /** Changes what the next connections meet. */
  options: HostileSshOptions;
}

/** Starts the server on loopback. User `root` and password `hostile` get in, as everybody else does. */
export async function startHostileSshServer(options: HostileSshOptions = {}): Promise<HostileSshServer> {
  const key = sshKeyPair();
  const commands: string[] = [];
  const connections = new Set<HostileConnection>();
  const hostile = { options };

  const serve = async (channel: ServerChannel, command: string, mark: string | undefined) => {
    channel.on('error', () => undefined);
    const input = await text(channel).catch(() => '');
    channel.write(printed(mark, hostile.options.answer?.(command, input) ?? ''));
    channel.exit(0);
    channel.end();
  };
  const server = new ssh2.Server({ hostKeys: [key.private] }, (connection) => {
    const host = new HostileConnection(connection);
    connections.add(host);
    connection.on('error', () => undefined).once('close', () => connections.delete(host));
    connection.on('authentication', (context) =>
      hostile.options.onAuthentication ? hostile.options.onAuthentication(host) : context.accept(),
    );
    connection.on('ready', () => {
      const { window, packetSize, onLogin } = hostile.options;
      host.confirmWith({ window, packetSize });
      onLogin?.(host);
    });
    connection.on('session', (accept) =>
      accept().on('exec', (acceptExec, _reject, { command: line }) => {
        const { command, mark } = readCommand(line);
        commands.push(command);
        const channel = acceptExec();
        if (hostile.options.onExec) hostile.options.onExec(channel, command, mark, host);
        else void serve(channel, command, mark);
      }),
    );
    connection.on('request', (accept, _reject, name, info) => {
      accept?.();
      if (name === 'tcpip-forward') setImmediate(() => hostile.options.onForward?.(host, info.bindPort as number));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as AddressInfo).port,
    hostKey: key.public,
    commands,
    connections,
    get options() {
      return hostile.options;
    },
    set options(next) {
      hostile.options = next;
    },
    [Symbol.asyncDispose]: async () => {
      for (const { socket } of connections) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
