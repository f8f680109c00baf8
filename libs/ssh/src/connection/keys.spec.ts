import { generateKeyPairSync } from 'node:crypto';
import { AppError } from '@airdock/core/errors';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { connectSsh } from './connect.js';
import { parseHostKey, parsePrivateKey } from './keys.js';

let sshd: Sshd;
beforeAll(async () => {
  sshd = await startSshd();
});
afterAll(() => sshd?.stop());

const login = async (privateKey: string, passphrase?: string) => {
  const target = {
    address: '127.0.0.1',
    port: sshd.port,
    username: sshd.user,
    hostKeyFingerprint: parseHostKey(sshd.hostKeys.ed25519),
  };
  const connection = await connectSsh({ ...target, privateKey, passphrase });
  const said = await connection.run(['echo', 'hello']);
  await connection.close();
  return said;
};
const problem = (privateKey: string, passphrase?: string): AppError => {
  try {
    parsePrivateKey(privateKey, passphrase);
  } catch (error) {
    return error as AppError;
  }
  throw new Error('it was accepted');
};

describe('parsePrivateKey', () => {
  it.each([
    ['ed25519', 'RFC4716', 'ssh-ed25519'],
    ['ecdsa', 'RFC4716', 'ecdsa-sha2-nistp256'],
    ['ecdsa', 'PEM', 'ecdsa-sha2-nistp256'],
    ['ecdsa', 'PKCS8', 'ecdsa-sha2-nistp256'],
    ['rsa', 'RFC4716', 'ssh-rsa'],
    ['rsa', 'PEM', 'ssh-rsa'],
    ['rsa', 'PKCS8', 'ssh-rsa'],
  ])('reads %s keys in the format %s, with and without passphrase, and hosts take them', async (type, format, name) => {
    const open = await sshd.authorizedKey('-t', type, '-m', format);
    expect(parsePrivateKey(open)).toMatchObject({ type: name, fingerprint: expect.stringMatching(/^SHA256:/) });
    expect(await login(open)).toBe('hello');
    const locked = await sshd.authorizedKey('-t', type, '-m', format, '-N', 'open sesame');
    expect(await login(locked, 'open sesame')).toBe('hello');
    for (const wrong of [undefined, 'sesame']) {
      const error = problem(locked, wrong);
      expect(error).toMatchObject({ code: 'credential_invalid', message: expect.stringContaining('passphrase') });
      expect(error.message).not.toContain('sesame');
    }
  });

  it('reads Ed25519 keys as OpenSSL writes them', async () => {
    const { privateKey } = generateKeyPairSync('ed25519');
    const plain = privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;
    const locked = privateKey.export({
      type: 'pkcs8',
      format: 'pem',
      cipher: 'aes-256-cbc',
      passphrase: 'sesame',
    }) as string;
    const { fingerprint } = parsePrivateKey(plain);
    expect(parsePrivateKey(locked, 'sesame')).toEqual({ type: 'ssh-ed25519', fingerprint });
    await expect(login(plain)).rejects.toMatchObject({ code: 'host_auth_failed' });
  });

  it('refuses what is no private key, or of a kind that hosts no longer take, without repeating it', () => {
    const dsa = generateKeyPairSync('dsa', { modulusLength: 1024, divisorLength: 160 }).privateKey.export({
      type: 'pkcs8',
      format: 'pem',
    }) as string;
    for (const text of ['', 'sesame', sshd.hostKeys.ed25519, dsa]) {
      const error = problem(text);
      expect(error).toMatchObject({ code: 'credential_invalid' });
      if (text) expect(error.message).not.toContain(text.slice(0, 6));
    }
  });
});

describe('parseHostKey', () => {
  it('reads fingerprints and the lines of ssh-keyscan and .pub files', () => {
    const fingerprint = parseHostKey(sshd.hostKeys.ed25519);
    expect(parseHostKey(fingerprint)).toBe(fingerprint);
    expect(parseHostKey(`[127.0.0.1]:22 ${sshd.hostKeys.ed25519}`)).toBe(fingerprint);
    for (const text of ['', 'SHA256:short', 'ssh-ed25519', 'MD5:aa:bb'])
      expect(() => parseHostKey(text)).toThrowError(AppError);
  });
});
