import { defineConfig } from '@hey-api/openapi-ts';

// bin/openapi.sh --check generates into a folder of its own, to compare.
const root = process.env.OPENAPI_CHECK_DIR;

export default defineConfig({
  input: root ? `${root}/openapi/airdock.json` : './openapi/airdock.json',
  output: { path: root ? `${root}/client` : 'libs/clients/src/generated', module: { extension: '.js' } },
  plugins: ['@hey-api/client-fetch', '@hey-api/typescript', '@hey-api/sdk'],
  logs: { level: 'silent' },
});
