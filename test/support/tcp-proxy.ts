import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { Transform } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';

/** A way to a server, on loopback, that can be cut. */
export interface TcpProxy extends AsyncDisposable {
  port: number;
  /** Ends all connections, and new ones as soon as they are made. */
  cut(): void;
  /** Lets nothing through any more on connections that are open, without ending them before `mend`. */
  freeze(): void;
  /** Lets so many bytes per second through to the server, on each connection, until `mend`. */
  slow(bytesPerSecond: number): void;
  /** Accepts new connections without ever answering, but for the first `letThrough`. */
  hold(letThrough: number): void;
  /** How many connections are held. */
  held(): number;
  /** New connections are let through again; those that were frozen end. */
  mend(): void;
  stop(): Promise<void>;
}

export async function startTcpProxy(target: { address: string; port: number }): Promise<TcpProxy> {
  const open = new Set<Socket>();
  const frozen = new Set<Socket>();
  let isCut = false;
  let mended = new AbortController();
  let rate = Number.POSITIVE_INFINITY;
  const slowly = () =>
    new Transform({
      transform(chunk: Buffer, _encoding, done) {
        const pass = () => done(null, chunk);
        if (rate === Number.POSITIVE_INFINITY) return pass();
        delay((chunk.byteLength / rate) * 1000, undefined, { signal: mended.signal }).then(pass, pass);
      },
    });
  let letThrough = Number.POSITIVE_INFINITY;
  let held = 0;
  const server = createServer((socket) => {
    open.add(socket);
    socket.on('error', () => undefined).once('close', () => open.delete(socket));
    if (isCut) return void socket.destroy();
    if (letThrough === 0) return void held++;
    letThrough -= 1;
    const onward = connect({ host: target.address, port: target.port, noDelay: true });
    socket.setNoDelay(true);
    open.add(onward);
    onward.on('error', () => socket.destroy()).once('close', () => open.delete(onward));
    socket.once('close', () => onward.destroy());
    onward.once('close', () => socket.destroy());
    socket.pipe(slowly()).pipe(onward).pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const cut = () => {
    isCut = true;
    for (const socket of open) socket.destroy();
  };
  const stop = async () => {
    cut();
    await new Promise((resolve) => server.close(resolve));
  };
  return {
    port: (server.address() as AddressInfo).port,
    cut,
    freeze: () => {
      for (const socket of open) frozen.add(socket.unpipe().pause());
    },
    slow: (bytesPerSecond) => {
      rate = bytesPerSecond;
    },
    hold: (count) => {
      letThrough = count;
      held = 0;
    },
    held: () => held,
    mend: () => {
      isCut = false;
      letThrough = Number.POSITIVE_INFINITY;
      rate = Number.POSITIVE_INFINITY;
      mended.abort();
      mended = new AbortController();
      for (const socket of frozen) socket.destroy();
      frozen.clear();
    },
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
