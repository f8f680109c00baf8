/**
 * Random SSH messages of a host against what connects to hosts: `node test/dist/security/ssh-fuzz.js [--minutes N |
 * --logins N] [--seed N]`. The host is this process, the one that connects another, which must not stand still, end, or
 * fill its memory. Exit code 1 when it does; with the same seed each login gets the same messages.
 */
import { fork } from 'node:child_process';
import { createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { connectSsh } from '@airdock/ssh/connection/connect';
import { parseHostKey } from '@airdock/ssh/connection/keys';
import { openTunnel } from '@airdock/ssh/tunnel/tunnel';
import { type HostileConnection, messageOf, startHostileSshServer } from '@airdock/testing/hostile-ssh-server';

const hostPort = 5100;
const messagesOfLogin = 25;
const atOnce = 4;
const silenceMs = 5_000;
const maxRssMib = 400;
/** Of one login: what does not end it by then is ended. */
const loginMs = 1_500;

interface Report {
  rssMib: number;
  logins: number;
}

/** mulberry32 */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Messages of a login: of all types, with fields that are right, wrong, or cut. */
function messageMaker(random: () => number) {
  const below = (bound: number) => Math.floor(random() * bound);
  const oneOf = <T>(values: readonly T[]): T => values[below(values.length)] as T;
  const bytes = (length: number) => Buffer.from(Array.from({ length }, () => below(256)));
  const number = () =>
    oneOf([0, 1, 2, 3, 5, below(64), 100, 4095, 4096, 32_768, 65_536, 2 ** 21, 2 ** 31, 2 ** 32 - 1, below(2 ** 32)]);
  const channel = () => oneOf([0, 0, 0, 1, 1, 2, 3, 64, number()]);
  const text = () =>
    oneOf([
      '',
      'x',
      '127.0.0.1',
      'exit-status',
      'session',
      '\u001b[31m',
      'a,'.repeat(below(200)),
      'password',
      'ssh-connection',
      bytes(below(64)).toString('latin1'),
    ]);
  const string = () => oneOf([text(), bytes(below(200)), Buffer.alloc(oneOf([0, 1, 32_768, 32_769, 33_000]))]);
  const bool = () => ({ byte: oneOf([0, 1, 255]) });
  const forwarded = (packetSize: number) =>
    messageOf(90, 'forwarded-tcpip', below(100), number(), packetSize, '127.0.0.1', hostPort, '127.0.0.1', number());
  const makers: (() => Buffer)[] = [
    () => messageOf(1, number(), text(), ''),
    () => messageOf(2, string()),
    () => messageOf(3, number()),
    () => messageOf(4, bool(), string(), ''),
    () => messageOf(5, text()),
    () => messageOf(6, text()),
    () => messageOf(7, number(), text(), string(), 'server-sig-algs', string()),
    () =>
      messageOf(
        20,
        bytes(16),
        text(),
        text(),
        text(),
        text(),
        text(),
        text(),
        text(),
        text(),
        text(),
        text(),
        bool(),
        0,
      ),
    () => messageOf(oneOf([30, 31, 32, 33, 34]), string(), string(), string()),
    () => messageOf(21),
    () => messageOf(51, text(), bool()),
    () => messageOf(52),
    () => messageOf(53, string(), ''),
    () => messageOf(60, text(), text(), '', number(), string(), bool()),
    () =>
      messageOf(80, oneOf(['hostkeys-00@openssh.com', 'keepalive@openssh.com', text()]), bool(), string(), string()),
    () => messageOf(81, string()),
    () => messageOf(82),
    () => forwarded(32_768),
    () => forwarded(32_768),
    () => forwarded(number()),
    () =>
      messageOf(
        90,
        oneOf(['x11', 'auth-agent@openssh.com', 'direct-tcpip', 'session', text()]),
        number(),
        number(),
        number(),
        text(),
        number(),
        text(),
        number(),
      ),
    () => messageOf(91, channel(), number(), number(), oneOf([32_768, number()])),
    () => messageOf(92, channel(), number(), text(), ''),
    () => messageOf(93, channel(), number()),
    () => messageOf(94, channel(), string()),
    () => messageOf(94, channel(), 'GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n'),
    () => messageOf(95, channel(), oneOf([1, number()]), string()),
    () => messageOf(96, channel()),
    () => messageOf(97, channel()),
    () =>
      messageOf(
        98,
        channel(),
        oneOf(['exit-status', 'exit-signal', 'keepalive@openssh.com', text()]),
        bool(),
        oneOf([number(), text()]),
        bool(),
        text(),
        '',
      ),
    () => messageOf(99, channel()),
    () => messageOf(100, channel()),
    () => Buffer.concat([Buffer.from([below(256)]), bytes(below(400))]),
  ];
  return (): Buffer => {
    const made = oneOf(makers)();
    if (random() < 0.9) return made;
    const cut = made.subarray(0, 1 + below(made.length));
    return random() < 0.5 ? cut : Buffer.concat([made, bytes(below(64))]);
  };
}

async function fuzz(seed: number, isOver: (logins: number, startedAt: number) => boolean): Promise<number> {
  const chance = randomNumbers(seed);
  let attacks = 0;
  let messages = 0;
  let last: Buffer[] = [];
  const attack = async (host: HostileConnection) => {
    const random = randomNumbers(seed + ++attacks);
    const make = messageMaker(random);
    for (let count = 0; count < messagesOfLogin && !host.socket.destroyed; count++) {
      if (random() < 0.03) host.rekey();
      const together = Array.from({ length: random() < 0.3 ? 5 : 1 }, make);
      last = [...last.slice(-200), ...together];
      messages += together.length;
      host.sendTogether(together);
      if (random() < 0.5) await delay(1);
    }
    await delay(20);
    host.socket.destroy();
  };
  // Of the host's end: it hears what it has brought about.
  process.on('uncaughtException', () => undefined).on('unhandledRejection', () => undefined);
  await using server = await startHostileSshServer({});
  server.options = {
    onLogin: (host) => void attack(host).catch(() => undefined),
    onExec: (channel) => {
      channel.on('error', () => undefined).resume();
      if (chance() < 0.5) channel.write(Buffer.alloc(Math.floor(chance() * 100_000)));
    },
  };
  const client = fork(import.meta.filename, ['client', String(server.port), server.hostKey], {
    execArgv: ['--max-old-space-size=256'],
  });
  let report: Report = { rssMib: 0, logins: 0 };
  let heardAt = Date.now();
  let largest = 0;
  client.on('message', (said: Report) => {
    report = said;
    heardAt = Date.now();
    largest = Math.max(largest, said.rssMib);
  });
  const startedAt = Date.now();
  let finding: string | undefined;
  while (!finding && !isOver(report.logins, startedAt)) {
    await delay(100);
    // Some logins end before anything is asked.
    const early = messageMaker(chance);
    if (chance() < 0.05)
      server.options = {
        ...server.options,
        onAuthentication: (host) => host.sendTogether([early(), early(), early()]),
      };
    else if (server.options.onAuthentication)
      server.options = { ...server.options, onAuthentication: undefined } as typeof server.options;
    if (client.exitCode !== null || client.signalCode !== null)
      finding = `it ended with ${client.exitCode ?? client.signalCode}`;
    else if (Date.now() - heardAt > silenceMs) finding = `it stood still for ${silenceMs} ms`;
    else if (report.rssMib > maxRssMib) finding = `it has ${report.rssMib} MiB of memory`;
  }
  client.kill('SIGKILL');
  const seconds = Math.round((Date.now() - startedAt) / 1000);
  process.stdout.write(
    `seed ${seed}: ${report.logins} logins, ${messages} messages in ${seconds} s, at most ${largest} MiB: ${finding ?? 'nothing found'}\n`,
  );
  if (finding)
    process.stdout.write(`the last messages:\n${last.map((one) => one.subarray(0, 100).toString('hex')).join('\n')}\n`);
  return finding ? 1 : 0;
}

/** Logs in again and again, and uses each connection as host-svc does. */
async function beClient(port: number, hostKey: string): Promise<void> {
  let logins = 0;
  const tell = () => process.send?.({ rssMib: Math.round(process.memoryUsage().rss / 1024 ** 2), logins });
  setInterval(tell, 200);
  const target = createServer((socket) => void socket.on('error', () => undefined).end(Buffer.alloc(300_000)));
  await new Promise<void>((resolve) => target.listen(0, '127.0.0.1', resolve));
  const { port: targetPort } = target.address() as { port: number };
  const host = {
    address: '127.0.0.1',
    port,
    username: 'root',
    password: 'hostile',
    hostKeyFingerprint: parseHostKey(hostKey),
  };
  process.once('disconnect', () => process.exit(0));
  const logIn = async () => {
    const signal = AbortSignal.timeout(loginMs);
    try {
      await using connection = await connectSsh(host, { signal });
      logins += 1;
      await Promise.allSettled([
        connection.exec(['look'], { signal, stdin: 'x'.repeat(200_000) }),
        connection.exec(['other'], { signal, deadlineMs: 500 }),
        openTunnel(connection, { hostPort, target: { host: '127.0.0.1', port: targetPort } }),
        connection.forwardToSocket('/run/x'),
      ]);
    } catch {
      // What it says is not what is looked for.
    }
  };
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (;;) await logIn();
    }),
  );
}

const [role, ...rest] = process.argv.slice(2);
if (role === 'client') await beClient(Number(rest[0]), rest[1] ?? '');
else {
  const { values } = parseArgs({
    options: { minutes: { type: 'string' }, logins: { type: 'string' }, seed: { type: 'string' } },
  });
  const seed = Number(values.seed ?? Date.now() % 2 ** 31);
  const endless = {
    logins: Number(values.logins ?? Number.POSITIVE_INFINITY),
    minutes: Number(values.minutes ?? (values.logins ? 10 : 1)),
  };
  process.exit(
    await fuzz(
      seed,
      (logins, startedAt) => logins >= endless.logins || Date.now() - startedAt > endless.minutes * 60_000,
    ),
  );
}
