import { readOrMakeOnce } from '@airdock/disk/files/made-once';
import type { PrivateKey } from 'openpgp';

/** RSA, which the gpgv and rpm of every release that hosts may have understand. */
const rsaBits = 3072;

/**
 * The OpenPGP key that vouches for what hosts install from the DU: RFC 9580, made when it is first asked for. Hosts get
 * its public part over SSH. It lies unencrypted in a file of 0600, since it has to sign while nobody is there to type a
 * passphrase.
 */
export class RepositoryKey {
  private constructor(
    private readonly key: PrivateKey,
    /** As an armored text, for `signed-by` of apt and `gpgkey` of dnf. */
    readonly publicKey: string,
    /** 40 hex digits, as gpg prints it. */
    readonly fingerprint: string,
  ) {}

  /** Reads the key, or makes it; whoever comes first has made it for all. */
  static async open(path: string): Promise<RepositoryKey> {
    const openpgp = await import('openpgp');
    const armoredKey = await readOrMakeOnce(path, async () => {
      const { privateKey } = await openpgp.generateKey({
        type: 'rsa',
        rsaBits,
        userIDs: [{ name: 'Airdock package repositories' }],
        format: 'armored',
      });
      return privateKey;
    });
    const key = await openpgp.readPrivateKey({ armoredKey });
    return new RepositoryKey(key, key.toPublic().armor(), key.getFingerprint());
  }

  /** The text with its signature around it, as an `InRelease` is. */
  async clearSign(text: string): Promise<string> {
    const openpgp = await import('openpgp');
    return openpgp.sign({ message: await openpgp.createCleartextMessage({ text }), signingKeys: this.key });
  }

  /** The signature alone, armored, as `Release.gpg` and `repomd.xml.asc` are. */
  async signDetached(content: Uint8Array): Promise<string> {
    const openpgp = await import('openpgp');
    return openpgp.sign({
      message: await openpgp.createMessage({ binary: content }),
      signingKeys: this.key,
      detached: true,
    });
  }
}
