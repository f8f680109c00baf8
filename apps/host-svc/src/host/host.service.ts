import { connectSsh, parseHostKey, type SshConnection } from '@airdock/adapters/ssh/connection';
import { AppError } from '@airdock/core/errors';
import { isUniqueViolation, now } from '@airdock/platform/database';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, type Repository } from 'typeorm';
import { SshCredentialService } from '../ssh-credential/ssh-credential.service.js';
import { HostEntity } from './host.entity.js';
import type { ConfigurationOptions, CreateHost, Host, HostFacts, PatchHost } from './host.schema.js';

/** The hosts of the site, and connections to them. */
@Injectable()
export class HostService {
  constructor(
    @InjectRepository(HostEntity, 'host') private readonly hosts: Repository<HostEntity>,
    private readonly credentials: SshCredentialService,
  ) {}

  /** Throws `resource_not_found` for the credential, `resource_exists` for the name, `request_invalid` for the host key. */
  async create({ name, address, port, credentialId, hostKey }: CreateHost): Promise<Host> {
    await this.credentials.get(credentialId);
    const row: HostEntity = {
      id: newId(),
      name,
      address,
      port,
      credentialId,
      hostKeyFingerprint: parseHostKey(hostKey),
      facts: null,
      configuration: null,
      configuredAt: null,
      createdAt: now(),
    };
    try {
      await this.hosts.insert(row);
    } catch (error) {
      if (isUniqueViolation(error)) throw new AppError('resource_exists', { detail: `a host named ${name}` });
      throw error;
    }
    return row;
  }

  list(query: PageQuery): Promise<Page<Host>> {
    return findPage(this.hosts, query);
  }

  get(id: string): Promise<Host> {
    return getRow(this.hosts, id);
  }

  /** The hosts with these ids, in their order. Throws `resource_not_found`. */
  async getAll(ids: string[]): Promise<Host[]> {
    const found = new Map((await this.hosts.findBy({ id: In(ids) })).map((host) => [host.id, host]));
    return ids.map((id) => {
      const host = found.get(id);
      if (!host) throw new AppError('resource_not_found', { detail: `no host with id ${id}` });
      return host;
    });
  }

  /** Changes where and how a host is reached. A new host key is a decision of the caller's, never of the software's. */
  async patch(id: string, { hostKey, ...change }: PatchHost): Promise<Host> {
    if (change.credentialId) await this.credentials.get(change.credentialId);
    await getRow(this.hosts, id);
    const set = { ...change, ...(hostKey ? { hostKeyFingerprint: parseHostKey(hostKey) } : {}) };
    if (Object.keys(set).length > 0) await this.hosts.update({ id }, set);
    return getRow(this.hosts, id);
  }

  async remove(id: string): Promise<void> {
    await getRow(this.hosts, id);
    await this.hosts.delete({ id });
  }

  /** Throws `resource_in_use` naming the hosts. */
  async assertCredentialUnused(credentialId: string): Promise<void> {
    const users = await this.hosts.findBy({ credentialId });
    if (users.length > 0) throw new AppError('resource_in_use', { detail: `hosts ${users.map(({ name }) => name).join(', ')} log in with it` });
  }

  /** Logs in to a host; the caller closes the connection. Throws `host_unreachable`, `host_timeout`, `host_key_mismatch`, `host_auth_failed`. */
  async connect(host: Pick<Host, 'address' | 'port' | 'credentialId' | 'hostKeyFingerprint'>, signal?: AbortSignal): Promise<SshConnection> {
    const secrets = await this.credentials.open(host.credentialId);
    return connectSsh({ address: host.address, port: host.port, hostKeyFingerprint: host.hostKeyFingerprint, ...secrets }, signal);
  }

  async saveFacts(id: string, facts: HostFacts): Promise<void> {
    await this.hosts.update({ id }, { facts });
  }

  async saveConfigured(id: string, configuration: ConfigurationOptions): Promise<void> {
    await this.hosts.update({ id }, { configuration, configuredAt: now() });
  }
}
