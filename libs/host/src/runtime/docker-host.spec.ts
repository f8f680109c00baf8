import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { HostBuffers } from '@airdock/ssh/command/host-buffers';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DockerHost } from './docker-host.js';

const digest = `sha256:${'a'.repeat(64)}` as const;
const reference = `localhost:5100/pause@${digest}`;
let folder: TempDir;
let server: Server;
let asked: string[];
let answer: (request: IncomingMessage, response: ServerResponse) => void;

beforeAll(async () => {
  folder = await tempDir('docker-host');
  server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url}`);
    answer(request, response);
  });
  await new Promise<void>((resolve) => server.listen(join(folder.path, 'docker.sock'), resolve));
});
afterAll(async () => {
  server?.closeAllConnections();
  await folder?.remove();
});

interface Way {
  isRoot?: boolean;
  hasSocket?: boolean;
  isBroken?: boolean;
  program?: string;
}

/** Docker on a host whose API says what `answers`, and whose program prints `program`. */
function dockerThat(
  answers: typeof answer,
  { isRoot = true, hasSocket = true, isBroken = false, program = '' }: Way = {},
) {
  asked = [];
  answer = answers;
  const connection = {
    buffers: new HostBuffers(),
    elevation: async () => (isRoot ? 'root' : 'sudo without password'),
    forwardToSocket: async () => (hasSocket ? connect(join(folder.path, 'docker.sock')) : undefined),
    roundTrip: async () => {
      if (isBroken) throw new AppError('host_unreachable');
    },
    run: async () => program,
    exec: async () => ({ exitCode: 0, stdout: program, stderr: '' }),
  };
  return new DockerHost(connection as unknown as SshConnection, new AbortController().signal);
}
const nobody = () => expect.unreachable();

describe('DockerHost', () => {
  it('asks the API for the version and the images, and skips images without a name', async () => {
    const version = dockerThat(
      (_, response) => response.setHeader('Server', 'Docker/20.10.24+dfsg1 (linux)').end('OK'),
      { program: 'docker=1' },
    );
    expect(await version.version()).toBe('20.10.24+dfsg1');
    const images = [
      { Id: digest, RepoTags: ['localhost:5100/pause:3.2', '<none>:<none>'] },
      { Id: 'sha256:b', RepoTags: null },
    ];
    const docker = dockerThat((_, response) => response.end(JSON.stringify(images)));
    expect(Object.fromEntries(await docker.imageIds())).toEqual({ 'localhost:5100/pause:3.2': digest });
    expect(asked).toEqual(['GET /images/json']);
  });

  it.each([
    ['through sudo', { isRoot: false }],
    ['without a channel to its socket', { hasSocket: false }],
  ])('asks the program %s', async (_, way) => {
    expect(await dockerThat(nobody, { ...way, program: 'docker=20.10.24\n' }).version()).toBe('20.10.24');
    expect(await dockerThat(nobody, { ...way, program: '' }).version()).toBeUndefined();
    expect([
      ...(await dockerThat(nobody, { ...way, program: `localhost:5100/pause:3.2 ${digest}` }).imageIds()).values(),
    ]).toEqual([digest]);
    expect(await dockerThat(nobody, { ...way, program: JSON.stringify([reference]) }).pull(reference)).toBe(digest);
    expect(await dockerThat(nobody, way).has(reference)).toBe(false);
    expect(asked).toEqual([]);
  });

  it('takes no other program at that socket for Docker', async () => {
    expect(
      await dockerThat((_, response) => response.setHeader('Server', 'Libpod/4.3.1 (linux)').end('OK')).version(),
    ).toBeUndefined();
  });

  it('pulls, and returns the digest under the name that was pulled', async () => {
    const docker = dockerThat(({ method }, response) =>
      response.end(
        method === 'POST'
          ? '{"status":"Pulling"}\n{"status":"Digest: …"}\n'
          : JSON.stringify({ RepoDigests: [`quay.io/pause@sha256:${'b'.repeat(64)}`, reference] }),
      ),
    );
    expect(await docker.pull(reference)).toBe(digest);
    expect(asked).toEqual([
      `POST /images/create?fromImage=localhost%3A5100%2Fpause&tag=sha256%3A${'a'.repeat(64)}`,
      `GET /images/${reference}/json`,
    ]);
  });

  it.each<[string, typeof answer, object]>([
    [
      'refused',
      (_, response) => response.writeHead(404).end('{"message":"no such manifest"}'),
      { code: 'host_pull_failed', message: /no such manifest/ },
    ],
    [
      'failed half way',
      (_, response) => response.end('{"status":"Pulling"}\r\n{"error":"connection refused"}\r\n'),
      { code: 'host_pull_failed', message: /refused/ },
    ],
    [
      'out of space',
      (_, response) => response.end('{"error":"write /x: no space left on device"}\n'),
      { code: 'host_disk_full', message: /space/ },
    ],
    [
      'cut short by Docker',
      (_, response) => response.write('{"status":') && response.destroy(),
      { code: 'host_pull_failed', message: /images\/create/ },
    ],
  ])('says why a pull was %s', async (_, answers, { code, message }: { code?: string; message?: RegExp }) => {
    await expect(dockerThat(answers).pull(reference)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message as RegExp),
    });
  });

  it('says that the host is gone when the connection has broken', async () => {
    await expect(dockerThat((_, response) => response.destroy(), { isBroken: true }).imageIds()).rejects.toMatchObject({
      code: 'host_unreachable',
    });
  });

  it('believes no answer that is none', async () => {
    await expect(dockerThat((_, response) => response.end('<html>')).imageIds()).rejects.toMatchObject({
      code: 'host_command_failed',
    });
  });
});
