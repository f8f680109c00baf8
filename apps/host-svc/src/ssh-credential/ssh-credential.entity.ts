import { Column, Entity, PrimaryColumn } from 'typeorm';

@Entity('ssh_credential')
export class SshCredentialEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar') username!: string;
  @Column('varchar') kind!: 'key' | 'password';
  @Column('varchar', { nullable: true }) publicKeyFingerprint!: string | null;
  @Column('boolean', { default: false }) hasSudoPassword!: boolean;
  /** Private key, passphrase, password and sudoPassword, sealed with the id as context. */
  @Column('text') sealed!: string;
  @Column('varchar') createdAt!: string;
}
