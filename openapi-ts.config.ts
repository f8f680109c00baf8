import { defineConfig } from '@hey-api/openapi-ts';

export default defineConfig({
  input: './openapi/airdock.json',
  output: { path: 'libs/adapters/src/api-clients/generated', module: { extension: '.js' } },
  plugins: ['@hey-api/client-fetch', '@hey-api/typescript', '@hey-api/sdk'],
  logs: { level: 'silent' },
});
