import type { Algorithms } from 'ssh2';

/** What is offered to hosts, first what is preferred. */
export interface SshAlgorithms {
  kex: string[];
  cipher: string[];
  mac: string[];
}

/**
 * Left out of what ssh2 knows: group exchanges, whose primes the server chooses and OpenSSL tests for minutes; the
 * largest groups, of which each takes a tenth of a second and more; SHA-1 and CBC; compression, whose packets unfold to
 * a thousand times their size. AES-128-GCM is first, which costs least where the processor has AES.
 */
export const defaultAlgorithms: SshAlgorithms = {
  kex: [
    'curve25519-sha256',
    'curve25519-sha256@libssh.org',
    'ecdh-sha2-nistp256',
    'ecdh-sha2-nistp384',
    'ecdh-sha2-nistp521',
    'diffie-hellman-group14-sha256',
    'diffie-hellman-group16-sha512',
  ],
  cipher: [
    'aes128-gcm@openssh.com',
    'aes256-gcm@openssh.com',
    'chacha20-poly1305@openssh.com',
    'aes128-ctr',
    'aes192-ctr',
    'aes256-ctr',
  ],
  mac: ['hmac-sha2-256-etm@openssh.com', 'hmac-sha2-512-etm@openssh.com', 'hmac-sha2-256', 'hmac-sha2-512'],
};

/** As ssh2 takes them; a list that is left out is the default one. */
export function algorithmsToOffer({ kex, cipher, mac }: Partial<SshAlgorithms> = {}): Algorithms {
  const lists = {
    kex: kex ?? defaultAlgorithms.kex,
    cipher: cipher ?? defaultAlgorithms.cipher,
    hmac: mac ?? defaultAlgorithms.mac,
  };
  return { ...(lists as Algorithms), compress: ['none'] };
}
