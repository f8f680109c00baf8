import { runService } from '@airdock/platform/service';
import { RegistryModule } from './registry.module.js';

await runService('registry', RegistryModule, 'worker');
