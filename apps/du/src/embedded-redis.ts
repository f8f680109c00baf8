import type { ChildProcess } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { pollUntil } from '@airdock/core/poll-until';
import { startOwned } from '@airdock/disk/programs/start-program';

const startTimeoutMs = 10_000;
const restartMs = 500;
/** sun_path of unix(7), with its closing zero. */
const maxSocketPath = 108;

/**
 * A redis-server of our own on a socket that only this user can open: no listener on any network. It keeps nothing on
 * disk, since the queue is only a wake-up, and is started again when it dies.
 */
export class EmbeddedRedis {
  private readonly folder: string;
  readonly socket: string;
  private child: ChildProcess | undefined;
  private stopped = false;

  /**
   * The socket lies in the data folder, which only one DU uses; where that path is longer than a socket's may be, in a
   * temporary folder.
   */
  constructor(dataDir: string) {
    const folder = join(dataDir, 'redis');
    this.folder =
      join(folder, 'redis.sock').length < maxSocketPath ? folder : mkdtempSync(join(tmpdir(), 'airdock-redis-'));
    this.socket = join(this.folder, 'redis.sock');
  }

  /** Throws `dependency_unavailable` when there is no redis-server or it does not start. */
  async start(): Promise<void> {
    mkdirSync(this.folder, { recursive: true, mode: 0o700 });
    await this.spawn();
    if (!(await pollUntil({ everyMs: 20, timeoutMs: startTimeoutMs }, () => this.isAnswering())))
      throw new AppError('dependency_unavailable', { detail: 'redis-server did not start' });
  }

  async stop(): Promise<void> {
    this.stopped = true;
    const { child } = this;
    if (child && child.exitCode === null && child.signalCode === null) {
      const exited = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGTERM');
      await exited;
    }
    rmSync(this.folder, { recursive: true, force: true });
  }

  private async spawn(): Promise<void> {
    const options = [
      '--port',
      '0',
      '--unixsocket',
      this.socket,
      '--unixsocketperm',
      '600',
      '--save',
      '',
      '--appendonly',
      'no',
      '--maxmemory-policy',
      'noeviction',
      '--dir',
      this.folder,
    ];
    const child = startOwned(['redis-server', ...options], 'TERM');
    this.child = child;
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', (cause) =>
        reject(
          new AppError(
            'dependency_unavailable',
            {
              detail:
                'redis-server could not be run; install the packages redis-server and util-linux, or set REDIS_URL',
            },
            { cause },
          ),
        ),
      );
    });
    child.once('exit', () => {
      if (this.stopped) return;
      setTimeout(
        () => void this.spawn().catch((error: Error) => process.stderr.write(`airdock: ${error.message}\n`)),
        restartMs,
      );
    });
  }

  private isAnswering(): Promise<boolean> {
    return new Promise((resolve) => {
      const socket = connect(this.socket, () => socket.write('PING\r\n'));
      socket.once('data', () => {
        socket.destroy();
        resolve(true);
      });
      socket.once('error', () => resolve(false));
    });
  }
}
