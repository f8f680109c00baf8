import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { waitFor } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Du } from '../support/du.js';
import { bySocket } from '../support/raw-http.js';

describe('M10: keys of a DU', () => {
  let folder: string;
  let du: Du;
  const password = 'S3cret-of-the-key-test';
  const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
    bySocket(du.socket, 'POST', path, { body, headers });
  const status = async (token: string) =>
    (await fetch(`${du.url}/v1/jobs`, { headers: { authorization: `Bearer ${token}` } })).status;
  const sealedNow = async () => {
    const internal = { headers: { authorization: `Bearer ${await du.internalToken()}` } };
    const host = await bySocket(du.socket, 'GET', '/v1/states/host', internal);
    const backup = await bySocket(du.socket, 'GET', '/v1/states/backup', internal);
    return [host.text, backup.text].flatMap((text) => text.match(/v[12]\.[A-Za-z0-9_.-]{60,}/g) ?? []);
  };
  const ended = async (id: unknown) => {
    let job: Record<string, unknown> = {};
    await waitFor(
      async () => {
        job = (await bySocket(du.socket, 'GET', `/v1/jobs/${String(id)}?waitSeconds=5`)).json;
        return job.finishedAt !== null;
      },
      { what: 'the job to end', timeoutMs: 60_000 },
    );
    return job;
  };

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'airdock-keys-'));
    du = await Du.start({ folder, privateRegistryType: 'none', stopsRegistry: true });
  });
  afterAll(async () => {
    await du?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  it('replaces the token without a restart; the one before counts for a while, or not at all', async () => {
    const first = await du.token();
    const rotated = await post('/v1/token-rotations', { keepPreviousMinutes: 10 });
    expect(rotated).toMatchObject({
      status: 201,
      json: { tokenFile: join(du.dataDir, 'admin.token'), previousUntil: expect.any(String) },
    });
    const second = await du.token();
    expect(rotated.text).not.toContain(second);
    expect([await status(first), await status(second)]).toEqual([200, 200]);
    for (const file of ['admin.token', 'admin.token.previous'])
      expect((await stat(join(du.dataDir, file))).mode & 0o777).toBe(0o600);
    expect(await readFile(join(du.dataDir, 'admin.token.previous'), 'utf8')).not.toContain(first);
    await post('/v1/token-rotations', { keepPreviousMinutes: 0 });
    expect([await status(first), await status(second), await status(await du.token())]).toEqual([401, 401, 200]);
  });

  it('takes a token that an operator has put into the file, unless others can read it', async () => {
    const before = await du.token();
    const path = join(du.dataDir, 'admin.token');
    const own = 'a-token-that-an-operator-chose-0123456789';
    await writeFile(path, own);
    expect([await status(before), await status(own)]).toEqual([401, 200]);
    await writeFile(path, `${own}-and-another`);
    await chmod(path, 0o644);
    expect([await status(own), await status(`${own}-and-another`)]).toEqual([200, 401]);
    await chmod(path, 0o600);
    expect([await status(own), await status(`${own}-and-another`)]).toEqual([401, 200]);
  });

  it('exchanges secrets.key with all sealed texts, also when the DU is killed in the middle', async () => {
    const made = await post(
      '/v1/ssh-credentials',
      { name: 'keys', username: 'root', password },
      { 'idempotency-key': 'one' },
    );
    expect(made.status).toBe(201);
    expect((await post('/v1/webhook-endpoints', { url: 'http://10.255.0.1/', events: ['*'] })).status).toBe(201);
    const path = join(du.dataDir, 'secrets.key');
    const [keyBefore, sealedBefore] = [(await readFile(path, 'utf8')).trim(), await sealedNow()];
    expect(sealedBefore.length).toBeGreaterThanOrEqual(2);
    const before = (await bySocket(du.socket, 'GET', '/v1/secrets-key')).json;
    const job = await post('/v1/secrets-key/rotations', {});
    expect(job.status).toBe(202);
    await waitFor(async () => (await readFile(path, 'utf8')).trim().split('\n').length === 2, {
      what: 'two keys',
      timeoutMs: 20_000,
    });
    await du.end('SIGKILL');
    // Nothing is lost at any moment: the file has both keys, in full.
    expect((await readFile(path, 'utf8')).trim().split('\n')).toEqual([
      expect.stringMatching(/^[0-9a-f]{64}$/),
      keyBefore,
    ]);
    await du.startProcess();
    expect(await ended(job.json.id)).toMatchObject({ state: 'succeeded', result: { unreadable: 0 } });
    const keyAfter = (await readFile(path, 'utf8')).trim();
    expect(keyAfter).toMatch(/^[0-9a-f]{64}$/);
    expect(keyAfter).not.toBe(keyBefore);
    const after = (await bySocket(du.socket, 'GET', '/v1/secrets-key')).json;
    expect(after).toEqual({ fingerprint: expect.not.stringMatching(String(before.fingerprint)), rotating: false });
    const sealedAfter = await sealedNow();
    expect(sealedAfter).toHaveLength(sealedBefore.length);
    expect(sealedAfter.filter((sealed) => sealedBefore.includes(sealed))).toEqual([]);
    // With the new key alone everything opens: a start has nothing else.
    await du.end();
    await du.startProcess();
    const id = String(made.json.id);
    expect(
      (await bySocket(du.socket, 'PATCH', `/v1/ssh-credentials/${id}`, { body: { sudoPassword: 'another' } })).status,
    ).toBe(200);
    for (const text of [await readFile(path, 'utf8'), du.output]) expect(text).not.toContain(password);
  });
});

describe('L2: what a copy of the database tells', () => {
  it('is nothing of a request that was sent with an Idempotency-Key', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'airdock-digest-'));
    try {
      await using du = await Du.start({ folder, privateRegistryType: 'none', stopsRegistry: true });
      const body = { name: 'digest', username: 'root', password: 'Sommer2026!' };
      const headers = { 'idempotency-key': 'a-key' };
      const first = await bySocket(du.socket, 'POST', '/v1/ssh-credentials', { body, headers });
      expect(await bySocket(du.socket, 'POST', '/v1/ssh-credentials', { body, headers })).toMatchObject({
        status: 201,
        text: first.text,
      });
      expect(
        await bySocket(du.socket, 'POST', '/v1/ssh-credentials', { body: { ...body, password: 'x' }, headers }),
      ).toMatchObject({ status: 422 });
      await du.end();
      const file = join(du.dataDir, 'db', 'host.sqlite');
      const wal = await readFile(`${file}-wal`, 'latin1').catch(() => '');
      const text = (await readFile(file, 'latin1')) + wal;
      // What somebody with a list of words would look for.
      const { createHash } = await import('node:crypto');
      const guesses = [JSON.stringify(body), JSON.stringify({ ...body }), body.password].map((guess) =>
        createHash('sha256').update(guess).digest('hex'),
      );
      for (const guess of guesses) expect(text).not.toContain(guess);
      expect(text).toContain('createdAt');
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
