import { type AddressInfo, createServer } from 'node:net';
import { describe, expect, it } from 'vitest';
import { connectSsh } from './connect.js';

/** What a client says it can do, in the clear, before anything is agreed upon. */
async function offerOf(algorithms?: object): Promise<string> {
  let offer = '';
  const server = createServer((socket) => {
    socket.write('SSH-2.0-OpenSSH_9.2\r\n');
    socket.on('data', (chunk: Buffer) => {
      offer += chunk.toString('latin1');
      if (offer.includes('hmac-')) socket.destroy();
    });
    socket.on('error', () => undefined);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const target = {
    address: '127.0.0.1',
    port,
    username: 'root',
    password: 'x',
    hostKeyFingerprint: 'SHA256:x',
    algorithms,
  };
  await connectSsh(target as never).catch(() => undefined);
  await new Promise((resolve) => server.close(resolve));
  return offer;
}

describe('M10: what hosts are offered', () => {
  it('has neither SHA-1 nor compression nor CBC', async () => {
    const offer = await offerOf();
    expect(offer).toContain('curve25519-sha256');
    expect(offer).toContain('hmac-sha2-256-etm@openssh.com');
    expect(offer).not.toMatch(/sha1|zlib|cbc|arcfour|ssh-rsa(?![\w-])|ssh-dss|md5/);
    // Terrapin: strict key exchange.
    expect(offer).toContain('kex-strict-c-v00@openssh.com');
  });

  it('is what the site says', async () => {
    const offer = await offerOf({
      kex: ['ecdh-sha2-nistp384'],
      cipher: ['aes256-gcm@openssh.com'],
      mac: ['hmac-sha2-512'],
    });
    expect(offer).toContain('ecdh-sha2-nistp384');
    expect(offer).not.toMatch(/curve25519|chacha20|aes128|hmac-sha2-256/);
  });
});
