import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Body, Controller, Delete, Get, Param, Patch, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CredentialUsersService } from './credential-users.service.js';
import { CreateSshCredential, PatchSshCredential, SshCredential, SshCredentialPage } from './ssh-credential.schema.js';
import { SshCredentialService } from './ssh-credential.service.js';

@ApiTags('ssh-credentials')
@Controller({ path: 'ssh-credentials', version: '1' })
export class SshCredentialController {
  constructor(
    private readonly credentials: SshCredentialService,
    private readonly users: CredentialUsersService,
  ) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createSshCredential',
    summary: 'Store an SSH key or password; it is never returned',
    returns: SshCredential,
    status: 201,
  })
  create(@Body({ schema: CreateSshCredential }) body: CreateSshCredential): Promise<SshCredential> {
    return this.credentials.create(body);
  }

  @Get()
  @Operation({
    id: 'listSshCredentials',
    summary: 'Credentials without their secrets, newest first',
    returns: SshCredentialPage,
  })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<SshCredential>> {
    return this.credentials.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getSshCredential', summary: 'One credential without its secret', returns: SshCredential })
  get(@Param('id') id: string): Promise<SshCredential> {
    return this.credentials.get(id);
  }

  @Patch(':id')
  @Operation({
    id: 'patchSshCredential',
    summary: 'Give a credential another key, password, user or name; hosts keep it',
    returns: SshCredential,
  })
  patch(
    @Param('id') id: string,
    @Body({ schema: PatchSshCredential }) body: PatchSshCredential,
  ): Promise<SshCredential> {
    return this.credentials.patch(id, body);
  }

  @Delete(':id')
  @Operation({ id: 'deleteSshCredential', summary: 'Forget a credential that no host uses' })
  async remove(@Param('id') id: string): Promise<void> {
    await this.users.assertCredentialUnused(id);
    await this.credentials.remove(id);
  }
}
