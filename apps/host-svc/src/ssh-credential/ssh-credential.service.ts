import { parsePrivateKey } from '@airdock/adapters/ssh/connection';
import { AppError } from '@airdock/core/errors';
import { isUniqueViolation, now } from '@airdock/platform/database';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { SecretBox } from '@airdock/platform/secrets';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { SshCredentialEntity } from './ssh-credential.entity.js';
import type { CreateSshCredential, SshCredential } from './ssh-credential.schema.js';

/** What a connection needs; only ever in memory. */
export interface SshSecrets {
  username: string;
  privateKey?: string | undefined;
  passphrase?: string | undefined;
  password?: string | undefined;
}

/** SSH keys and passwords: encrypted at rest, never returned. */
@Injectable()
export class SshCredentialService {
  constructor(
    @InjectRepository(SshCredentialEntity, 'host') private readonly credentials: Repository<SshCredentialEntity>,
    private readonly secrets: SecretBox,
  ) {}

  /** Throws `credential_invalid`, `resource_exists`. */
  async create({ name, username, privateKey, passphrase, password }: CreateSshCredential): Promise<SshCredential> {
    const id = newId();
    const publicKeyFingerprint = privateKey ? parsePrivateKey(privateKey, passphrase).fingerprint : null;
    const sealed = this.secrets.seal(JSON.stringify({ privateKey, passphrase, password }), id);
    const row: SshCredentialEntity = { id, name, username, kind: privateKey ? 'key' : 'password', publicKeyFingerprint, sealed, createdAt: now() };
    try {
      await this.credentials.insert(row);
    } catch (error) {
      if (isUniqueViolation(error)) throw new AppError('resource_exists', { detail: `a credential named ${name}` });
      throw error;
    }
    return row;
  }

  list(query: PageQuery): Promise<Page<SshCredential>> {
    return findPage(this.credentials, query);
  }

  get(id: string): Promise<SshCredential> {
    return getRow(this.credentials, id);
  }

  async remove(id: string): Promise<void> {
    await getRow(this.credentials, id);
    await this.credentials.delete({ id });
  }

  /** Throws `secrets_key_invalid` when the key file is another one than at the time of storing. */
  async open(id: string): Promise<SshSecrets> {
    const row = await getRow(this.credentials, id);
    return { username: row.username, ...(JSON.parse(this.secrets.open(row.sealed, row.id)) as Omit<SshSecrets, 'username'>) };
  }
}
