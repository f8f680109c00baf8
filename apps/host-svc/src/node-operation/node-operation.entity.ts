import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { NodeAction, NodeOperationResult } from './node-operation.schema.js';

@Entity('node_operation')
export class NodeOperationEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') hostId!: string;
  @Column('simple-json') operation!: NodeAction;
  @Column('boolean') dryRun!: boolean;
  @Column('simple-json', { nullable: true }) result!: NodeOperationResult | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
