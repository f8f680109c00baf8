import { runService } from '@airdock/platform/service';
import { BackupModule } from './backup.module.js';

await runService('backup', BackupModule, 'api');
