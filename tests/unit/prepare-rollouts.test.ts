import { expect, test } from 'vitest';
import { stepsOf } from '../../activities/prepare-rollouts.ts';
import type { NodeOf } from '../../schemas/node-parameters.ts';

test('a stage ends at the first of its steps and its epochs over the training pool', () => {
  const node = (until: object) =>
    ({ parameters: { until, rollout: { prompts_per_step: 16 } } }) as unknown as NodeOf<'rl'>;
  expect(stepsOf(node({ steps: null, epochs: 1 }), 1000)).toEqual({ steps: 63, ends: 'epochs' }); // ceil(1000 / 16)
  expect(stepsOf(node({ steps: 5, epochs: null }), 1000)).toEqual({ steps: 5, ends: 'steps' });
  expect(stepsOf(node({ steps: 100, epochs: 1 }), 1000)).toEqual({ steps: 63, ends: 'epochs' });
  expect(stepsOf(node({ steps: 5, epochs: 1 }), 1000)).toEqual({ steps: 5, ends: 'steps' });
});
