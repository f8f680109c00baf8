import {
  groupsOf,
  parsePublicKey,
  type RecordKeys,
  type SigningKey as RecordSigningKey,
  signingKeyOf,
} from '@airdock/backup-store/record-signature';
import { AppError } from '@airdock/core/errors';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, isUniqueViolation, now } from '@airdock/platform/database';
import { getRow } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { readOrCreateSecretFile } from '@airdock/platform/secret-file';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { SigningKeyEntity } from './signing-key.entity.js';
import type { CreateSigningKey, SigningKey } from './signing-key.schema.js';

const maxKeys = 1_000;

/** The key that this DU signs its backups with, and those of other sites that it takes backups of. */
@Injectable()
export class SigningKeyService {
  private readonly own: RecordSigningKey;

  /** Makes the key on the first start. Throws `configuration_invalid` for a file that holds none. */
  constructor(
    @Inject(CONFIG) { signingKeyFile }: Config,
    @InjectRepository(SigningKeyEntity, 'backup') private readonly keys: Repository<SigningKeyEntity>,
  ) {
    const seed = readOrCreateSecretFile(signingKeyFile, 32, 'hex');
    if (!/^[0-9a-f]{64}$/i.test(seed))
      throw new AppError('configuration_invalid', { detail: `${signingKeyFile} does not hold 64 hex digits` });
    this.own = signingKeyOf(Buffer.from(seed, 'hex'));
  }

  get ownKeyId(): string {
    return this.own.keyId;
  }

  /** What signs records, and whose are taken now. */
  async recordKeys(): Promise<RecordKeys> {
    const rows = await this.keys.find({ take: maxKeys });
    return { own: this.own, trusted: rows.map(({ publicKey }) => parsePublicKey(publicKey)) };
  }

  /** The own key first. */
  async list(): Promise<SigningKey[]> {
    const rows = await this.keys.find({ order: { name: 'ASC' }, take: maxKeys });
    return [this.ownResource(), ...rows.map(toResource)];
  }

  async get(id: string): Promise<SigningKey> {
    return id === 'own' ? this.ownResource() : toResource(await getRow(this.keys, id));
  }

  /** Throws `signing_key_invalid`, also for a key with another fingerprint than is said, and `resource_exists`. */
  async create({ name, publicKey, keyId }: CreateSigningKey): Promise<SigningKey> {
    const key = parsePublicKey(publicKey);
    if (keyId !== undefined && keyId !== key.keyId && hexOf(keyId) !== hexOf(groupsOf(key.keyId)))
      throw new AppError('signing_key_invalid', { detail: `its fingerprint is ${key.keyId}, not ${keyId}` });
    if (key.keyId === this.own.keyId) throw new AppError('resource_exists', { detail: 'it is the key of this DU' });
    const row: SigningKeyEntity = { id: newId(), name, keyId: key.keyId, publicKey: key.text, createdAt: now() };
    try {
      await this.keys.insert(columns<SigningKeyEntity>(row));
    } catch (error) {
      if (isUniqueViolation(error))
        throw new AppError('resource_exists', { detail: `a key ${name}, or with the fingerprint ${key.keyId}` });
      throw error;
    }
    return toResource(row);
  }

  /** From now on backups of that site are taken no more, nor those that were imported from it. */
  async remove(id: string): Promise<void> {
    if (id === 'own') throw new AppError('resource_in_use', { detail: 'this DU signs with it' });
    await getRow(this.keys, id);
    await this.keys.delete({ id });
  }

  private ownResource(): SigningKey {
    const { keyId, text } = this.own;
    return { id: 'own', name: 'own', keyId, fingerprint: groupsOf(keyId), publicKey: text, own: true, createdAt: null };
  }
}

const toResource = ({ id, name, keyId, publicKey, createdAt }: SigningKeyEntity): SigningKey => ({
  ...{ id, name, keyId, publicKey, createdAt },
  fingerprint: groupsOf(keyId),
  own: false,
});

const hexOf = (fingerprint: string): string => fingerprint.replaceAll(' ', '').toLowerCase();
