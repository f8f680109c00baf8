import ssh2 from 'ssh2';

/**
 * A new Ed25519 pair in OpenSSH format. Of those that ssh2 makes one in two hundred is unreadable, to OpenSSH as well.
 */
export function sshKeyPair(comment = 'airdock'): { private: string; public: string } {
  for (;;) {
    const pair = ssh2.utils.generateKeyPairSync('ed25519', { comment });
    if (!(ssh2.utils.parseKey(pair.private) instanceof Error)) return pair;
  }
}
