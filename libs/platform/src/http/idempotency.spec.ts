import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { type ExecutionContext, Logger } from '@nestjs/common';
import { defer, lastValueFrom } from 'rxjs';
import type { DataSource } from 'typeorm';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '../database.js';
import { tablesOf } from '../schema/testing/tables.js';
import { SecretBox } from '../secrets.js';
import { IdempotencyKeyEntity } from './idempotency.entity.js';
import { IdempotencyInterceptor } from './idempotency.js';

describe('a request with an Idempotency-Key', () => {
  let folder: TempDir;
  let source: DataSource;
  let secrets: SecretBox;
  const keys = () => source.getRepository(IdempotencyKeyEntity);

  beforeAll(async () => {
    Logger.overrideLogger(false);
    folder = await tempDir('idempotency');
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides: { dataDir: folder.path } });
    source = await connectDatabase(
      dataSourceOptions(config, 'image', [IdempotencyKeyEntity], [tablesOf([IdempotencyKeyEntity])]),
    );
    secrets = new SecretBox(join(folder.path, 'secrets.key'));
  });
  beforeEach(() => keys().clear());
  afterAll(async () => {
    await source?.destroy();
    await folder?.remove();
  });

  /** Sends a request, in whose place `handle` answers; the answer with the headers that go with it. */
  async function send(handle: () => unknown, { key = 'k' as string | null, url = '/v1/things', body = {} } = {}) {
    const headers: Record<string, unknown> = { location: '/v1/jobs/1' };
    const reply = {
      statusCode: 202,
      getHeader: (name: string) => headers[name],
      status: () => reply,
      headers: (more: object) => Object.assign(headers, more),
    };
    const request = { method: 'POST', url, body, headers: { 'idempotency-key': key ?? undefined } };
    const http = { getRequest: () => request, getResponse: () => reply };
    const context = { switchToHttp: () => http } as unknown as ExecutionContext;
    const interceptor = new IdempotencyInterceptor(new ServiceDatabase(source), secrets);
    const answer = await interceptor.intercept(context, { handle: () => defer(async () => handle()) });
    return { answer: await lastValueFrom(answer), isReplayed: headers['idempotent-replayed'] === 'true' };
  }

  it('is done once, and gets the first answer again, which is not stored for everybody to read', async () => {
    const handle = vi.fn(() => ({ password: 'sesame' }));
    expect(await send(handle)).toEqual({ answer: { password: 'sesame' }, isReplayed: false });
    expect(await send(handle)).toEqual({ answer: { password: 'sesame' }, isReplayed: true });
    expect(handle).toHaveBeenCalledTimes(1);
    expect(JSON.stringify(await keys().find())).not.toContain('sesame');
  });

  it('is another one at another path, and one without a key is none of these', async () => {
    const handle = vi.fn(() => ({}));
    await send(handle);
    await send(handle, { url: '/v1/other-things' });
    await send(handle, { key: null });
    expect(handle).toHaveBeenCalledTimes(3);
    expect(await keys().count()).toBe(2);
  });

  it('is refused with another body, and while the first one runs', async () => {
    const handle = vi.fn(() => ({}));
    let other: unknown;
    await send(async () => {
      other = await send(handle).catch((error: unknown) => error);
    });
    expect(other).toMatchObject({ code: 'idempotency_key_running' });
    await expect(send(handle, { body: { name: 'b' } })).rejects.toMatchObject({ code: 'idempotency_key_reused' });
    expect(handle).not.toHaveBeenCalled();
  });

  it('may be sent again after it was refused, corrected too', async () => {
    const refuse = () => Promise.reject(new AppError('bundle_not_found'));
    await expect(send(refuse)).rejects.toMatchObject({ code: 'bundle_not_found' });
    expect(await send(() => ({ done: true }), { body: { name: 'b' } })).toMatchObject({ answer: { done: true } });
  });

  it('is done again when the process of the first has died with it', async () => {
    await send(() => ({}));
    await keys().updateAll({ status: null, createdAt: new Date(Date.now() - 61_000).toISOString() });
    expect(await send(() => ({ again: true }))).toMatchObject({ answer: { again: true }, isReplayed: false });
    expect(await send(() => ({}))).toMatchObject({ answer: { again: true }, isReplayed: true });
  });

  it('is done anew once the key of the secrets has changed, which its digest was made with', async () => {
    await send(() => ({ first: true }));
    secrets.beginRotation();
    secrets.endRotation();
    expect(await send(() => ({ second: true }))).toEqual({ answer: { second: true }, isReplayed: false });
  });

  it.each(['', 'with a space', 'x'.repeat(201)])('is refused when the key is %j', async (key) => {
    await expect(send(() => ({}), { key })).rejects.toMatchObject({ code: 'request_invalid' });
  });
});
