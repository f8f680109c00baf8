import { AppError } from '@airdock/core/errors';
import { chunks, isUniqueViolation, now } from '@airdock/platform/database';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { SecretBox } from '@airdock/platform/secrets';
import { parsePrivateKey } from '@airdock/ssh/connection/keys';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, type Repository } from 'typeorm';
import { SshCredentialEntity } from './ssh-credential.entity.js';
import type { CreateSshCredential, PatchSshCredential, SshCredential } from './ssh-credential.schema.js';

/** What a connection needs; only ever in memory. */
export interface SshSecrets {
  username: string;
  privateKey?: string | undefined;
  passphrase?: string | undefined;
  password?: string | undefined;
  sudoPassword?: string | undefined;
}

/** SSH keys, passwords, and passwords for sudo: encrypted at rest, never returned. */
@Injectable()
export class SshCredentialService {
  constructor(
    @InjectRepository(SshCredentialEntity, 'host') private readonly credentials: Repository<SshCredentialEntity>,
    private readonly secrets: SecretBox,
  ) {}

  /** Throws `credential_invalid`, `resource_exists`. */
  async create({ name, username, ...secrets }: CreateSshCredential): Promise<SshCredential> {
    const id = newId();
    const row: SshCredentialEntity = { id, name, username, ...this.seal(id, secrets), createdAt: now() };
    await unlessTaken(name, this.credentials.insert(row));
    return row;
  }

  /**
   * Changes what is given; a new key or password takes the place of the old one. Connections that are open stay; hosts
   * are logged in to with the new one from now on. Throws `credential_invalid`, `resource_exists`, and
   * `resource_changed` when the secrets were changed at the same time.
   */
  async patch(id: string, { name, username, sudoPassword, ...login }: PatchSshCredential): Promise<SshCredential> {
    const row = await getRow(this.credentials, id);
    const set: Partial<SshCredentialEntity> = {
      ...(name === undefined ? {} : { name }),
      ...(username === undefined ? {} : { username }),
    };
    const isLoginNew = login.privateKey !== undefined || login.password !== undefined;
    if (isLoginNew || sudoPassword !== undefined) {
      const { username: _, sudoPassword: known, ...old } = this.openRow(row);
      Object.assign(
        set,
        this.seal(id, {
          ...(isLoginNew ? login : old),
          sudoPassword: sudoPassword === undefined ? known : (sudoPassword ?? undefined),
        }),
      );
    }
    if (Object.keys(set).length > 0) {
      const unchanged = set.sealed === undefined ? {} : { sealed: row.sealed };
      const { affected } = await unlessTaken(name ?? row.name, this.credentials.update({ id, ...unchanged }, set));
      if (affected === 0) throw new AppError('resource_changed', { detail: `credential ${row.name}` });
    }
    return getRow(this.credentials, id);
  }

  /** The columns that tell of secrets, and hold them. Throws `credential_invalid`. */
  private seal(id: string, { privateKey, passphrase, password, sudoPassword }: Omit<SshSecrets, 'username'>) {
    return {
      kind: privateKey ? ('key' as const) : ('password' as const),
      publicKeyFingerprint: privateKey ? parsePrivateKey(privateKey, passphrase).fingerprint : null,
      hasSudoPassword: sudoPassword !== undefined,
      sealed: this.secrets.seal(JSON.stringify({ privateKey, passphrase, password, sudoPassword }), id),
    };
  }

  list(query: PageQuery): Promise<Page<SshCredential>> {
    return findPage(this.credentials, query);
  }

  get(id: string): Promise<SshCredential> {
    return getRow(this.credentials, id);
  }

  /** Those with one of these names; what is no name of one is left out. */
  async byNames(names: string[]): Promise<Map<string, SshCredential>> {
    const found = new Map<string, SshCredential>();
    for (const chunk of chunks(names))
      for (const row of await this.credentials.findBy({ name: In(chunk) })) found.set(row.name, row);
    return found;
  }

  async remove(id: string): Promise<void> {
    await getRow(this.credentials, id);
    await this.credentials.delete({ id });
  }

  /** Throws `secrets_key_invalid` when the key file is another one than at the time of storing. */
  async open(id: string): Promise<SshSecrets> {
    return this.openRow(await getRow(this.credentials, id));
  }

  private openRow(row: SshCredentialEntity): SshSecrets {
    return {
      username: row.username,
      ...(JSON.parse(this.secrets.open(row.sealed, row.id)) as Omit<SshSecrets, 'username'>),
    };
  }
}

async function unlessTaken<T>(name: string, write: Promise<T>): Promise<T> {
  try {
    return await write;
  } catch (error) {
    if (isUniqueViolation(error)) throw new AppError('resource_exists', { detail: `a credential named ${name}` });
    throw error;
  }
}
