import { defineConfig } from 'vitest/config';

/**
 * Four suites. Only `unit` runs files side by side: the others start real services, and two cores
 * measure two of them at once as time-outs.
 */
const sequential = { fileParallelism: false, maxWorkers: 1, pool: 'forks' } as const;

export default defineConfig({
  test: {
    projects: [
      { test: { name: 'unit', include: ['tests/unit/**/*.test.ts'], pool: 'forks', testTimeout: 20_000 } },
      {
        test: {
          name: 'integration',
          include: ['tests/integration/**/*.test.ts'],
          ...sequential,
          testTimeout: 180_000,
          hookTimeout: 180_000,
        },
      },
      {
        test: {
          name: 'replay',
          include: ['tests/replay/**/*.test.ts'],
          ...sequential,
          testTimeout: 180_000,
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          name: 'e2e',
          include: ['tests/e2e/**/*.test.ts'],
          ...sequential,
          testTimeout: 900_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
