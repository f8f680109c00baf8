/** Who logs in with a credential. Hosts know, which stand above credentials: they are this service. */
export abstract class CredentialUsersService {
  /** Throws `resource_in_use` naming the hosts. */
  abstract assertCredentialUnused(credentialId: string): Promise<void>;
}
