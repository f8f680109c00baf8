import { runService } from '@airdock/platform/service';
import { HostModule } from './host.module.js';

await runService('host', HostModule, 'api');
