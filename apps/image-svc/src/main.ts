import { runService } from '@airdock/platform/service';
import { ImageModule } from './image.module.js';

await runService('image', ImageModule, 'api');
