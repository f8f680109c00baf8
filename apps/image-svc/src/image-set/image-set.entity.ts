import { Column, Entity, PrimaryColumn } from 'typeorm';

@Entity('image_set')
export class ImageSetEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar', { nullable: true }) kubernetesVersion!: string | null;
  @Column('simple-json') images!: string[];
  @Column('varchar') createdAt!: string;
}
