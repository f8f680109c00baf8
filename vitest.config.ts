import { defineConfig } from 'vitest/config';

// Unit and component tests stand beside the source. `test/` holds what needs several processes or the lab.
// Specs are outside the projects' tsconfig files, so that builds leave them out; decorators are switched on for them here.
const source = {
  oxc: { decorator: { legacy: true, emitDecoratorMetadata: true } },
  resolve: { conditions: ['airdock-source'] },
  ssr: { resolve: { conditions: ['airdock-source'] } },
};

export default defineConfig({
  test: {
    // Tests wait more than they compute; by default a machine of two cores would run one file at a time. Each has ports, folders and a lab of its own.
    maxWorkers: 2,
    // Waits have bounds of their own (`waitFor`); these end a test that hangs in none of them.
    projects: [
      {
        ...source,
        test: {
          name: 'unit',
          include: ['libs/**/src/**/*.spec.ts'],
          exclude: ['**/dist/**', '**/node_modules/**'],
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
      {
        ...source,
        test: {
          name: 'component',
          include: ['apps/**/src/**/*.spec.ts'],
          exclude: ['**/dist/**', '**/node_modules/**'],
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
      {
        ...source,
        test: {
          name: 'e2e',
          include: ['test/**/*.e2e.ts'],
          exclude: ['**/dist/**', '**/node_modules/**'],
          testTimeout: 1_200_000,
          hookTimeout: 1_200_000,
        },
      },
    ],
  },
});
