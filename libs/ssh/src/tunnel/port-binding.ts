import { AppError } from '@airdock/core/errors';
import type { SshConnection } from '../connection/connection.js';
import { isLoopback, isOwnListener, listenersOn, refusalOf } from './sshd-look.js';

/**
 * Lets the host's sshd listen on a port of its loopback; returns the address by which it was asked. OpenSSH gives no
 * reason for a no. What PermitListen names it compares as text, so that it may let us listen on `localhost` and not on
 * 127.0.0.1. Of `localhost` it says yes also when it got ::1 only. Throws as `openTunnel`.
 */
export async function bindPort(connection: SshConnection, port: number): Promise<string> {
  return new PortBinding(connection, port).run();
}

class PortBinding {
  private address = '127.0.0.1';

  constructor(
    private readonly connection: SshConnection,
    private readonly port: number,
  ) {}

  async run(): Promise<string> {
    await this.bindSomehow();
    const seen = await this.listeners();
    if (seen.length > 0 && seen.every(isLoopback)) return this.ownAddress();
    // Another program may listen on another address of the host: what stays when we give up is not ours.
    await this.giveUp();
    const others = await this.exposed();
    const own = seen.filter((one) => !isLoopback(one) && !others.includes(one));
    if (own.length > 0) {
      const reason = await refusalOf(this.connection, 'address');
      throw this.failure('tunnel_exposed', `its sshd bound port ${this.port} on ${own.join(', ')}: ${reason}`);
    }
    if (seen.length === 0)
      throw this.failure('tunnel_failed', `on which addresses its sshd listens on port ${this.port} cannot be seen`);
    const cause = await this.bind();
    const now = cause ? [] : await this.exposed();
    if (!cause && now.every((one) => others.includes(one))) return this.ownAddress();
    await this.giveUp();
    throw this.failure('tunnel_failed', `who listens on port ${this.port} changes too fast`, cause);
  }

  /** By 127.0.0.1, else by `localhost`. */
  private async bindSomehow(): Promise<void> {
    let cause = await this.bind();
    if (!cause) return;
    const listeners = await this.listeners();
    if (listeners.length > 0) throw this.taken(`somebody listens on ${listeners.join(', ')}`, cause);
    // Whoever had it may have ended just now.
    cause = await this.bind();
    if (!cause) return;
    this.address = 'localhost';
    if (!(await this.bind())) return;
    const reason = await refusalOf(this.connection, 'tcp');
    const address = `127.0.0.1:${this.port}`;
    const hint = /permitlisten/i.test(reason) ? `; PermitListen ${address} is enough for this port` : '';
    throw this.failure('host_forwarding_refused', `${address} on the host could not be bound: ${reason}${hint}`, cause);
  }

  /** Resolves to sshd's refusal, if it refuses. */
  private async bind(): Promise<Error | undefined> {
    try {
      await this.connection.forwardFrom(this.port, true, this.address);
      return undefined;
    } catch (error) {
      if (error instanceof AppError) throw error;
      return error as Error;
    }
  }

  private async giveUp(): Promise<void> {
    // What is broken, or refused, frees the port as well.
    await this.connection.forwardFrom(this.port, false, this.address).catch(() => undefined);
  }

  /** The address, once the listener on it is known to be ours. */
  private async ownAddress(): Promise<string> {
    if (this.address === '127.0.0.1' || (await isOwnListener(this.connection, this.port))) return this.address;
    await this.giveUp();
    throw this.taken('another user listens there');
  }

  private listeners(): Promise<string[]> {
    return listenersOn(this.connection, this.port);
  }

  /** Addresses beyond loopback on which somebody listens. */
  private async exposed(): Promise<string[]> {
    return (await this.listeners()).filter((one) => !isLoopback(one));
  }

  private taken(by: string, cause?: Error): AppError {
    const { port } = this;
    return new AppError(
      'host_port_taken',
      { detail: `127.0.0.1:${port} on the host could not be bound: ${by}`, port },
      { cause },
    );
  }

  private failure(
    code: 'tunnel_exposed' | 'tunnel_failed' | 'host_forwarding_refused',
    text: string,
    cause?: Error,
  ): AppError {
    const { port, connection } = this;
    const details = { detail: `${connection.where}: ${text}`, ...(code === 'tunnel_failed' ? {} : { port }) };
    return new AppError(code, details, cause ? { cause } : undefined);
  }
}
