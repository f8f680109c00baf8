import { Column, Entity, PrimaryColumn } from 'typeorm';

/**
 * The public key of another site whose backups are taken. This table is no part of any backup: whom a site trusts is
 * not for a backup to say.
 */
@Entity('backup_signing_key')
export class SigningKeyEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar', { unique: true }) keyId!: string;
  @Column('varchar') publicKey!: string;
  @Column('varchar') createdAt!: string;
}
