import { runService } from '@airdock/platform/service';
import { ClusterModule } from './cluster.module.js';

await runService('cluster', ClusterModule, 'worker');
