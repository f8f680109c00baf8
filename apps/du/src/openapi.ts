import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { loadConfig, type ServiceName } from '@airdock/platform/config';
import { createHttpApp, openApiDocument } from '@airdock/platform/http/app';
import { rootModule } from '@airdock/platform/service';
import { services } from './services.js';

/**
 * Writes the OpenAPI document of each service and the merged one. Nothing is started: the documents follow from the
 * code alone.
 */
const folder = process.argv[2];
if (!folder) throw new Error('usage: openapi.js FOLDER');
await mkdir(folder, { recursive: true });
const config = loadConfig({
  file: '/dev/null',
  environment: {},
  overrides: { redisUrl: '/nowhere', logLevel: 'silent' },
});

const documents: [string, string, Partial<typeof services>][] = [
  ...(Object.entries(services) as [ServiceName, (typeof services)[ServiceName]][]).map(
    ([name, service]): [string, string, Partial<typeof services>] => [
      `${name}-svc`,
      `Airdock ${name}-svc`,
      { [name]: service },
    ],
  ),
  ['airdock', 'Airdock', services],
];
for (const [file, title, chosen] of documents) {
  const app = await createHttpApp(rootModule(config, chosen, ['api']), { title, preview: true });
  await writeFile(join(folder, `${file}.json`), `${JSON.stringify(openApiDocument(app, title), null, 2)}\n`);
}
process.exit(0);
