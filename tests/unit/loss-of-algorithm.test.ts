import { expect, test } from 'vitest';
import { lossOfAlgorithm } from '../../activities/loss-of-algorithm.ts';
import type { AlgorithmName } from '../../schemas/algorithms.ts';
import { nodesOf, recipe } from './plan-fixture.ts';

/** What the trainer is told when a spec names an algorithm and says nothing else. */
async function loss(name: AlgorithmName, ...overrides: string[]) {
  const stage = 'curriculum.stage1.algorithm';
  const nodes = await nodesOf(recipe, { overrides: [`~${stage}.clip`, `${stage}.name=${name}`, ...overrides] });
  return lossOfAlgorithm(nodes.find(({ id }) => id === 'stage1')?.parameters['algorithm'] as never);
}

const plain = { kind: 'policy_gradient', aggregation: 'token_mean' };

test.each([
  // arXiv:2402.03300 with the mean over tokens; arXiv:2503.20783; arXiv:2503.14476, section 4.1.
  ['grpo', { ...plain, clip: { low: 0.2, high: 0.2 } }],
  ['dr_grpo', { ...plain, aggregation: 'seq_mean_token_sum', clip: { low: 0.2, high: 0.2 } }],
  ['dapo', { ...plain, clip: { low: 0.2, high: 0.28 } }],
  // arXiv:2507.18071, section 5.1; arXiv:2506.13585, equation 4, bounded as in arXiv:2510.13786.
  ['gspo', { ...plain, ratio: 'sequence', aggregation: 'seq_mean_token_mean', clip: { low: 3e-4, high: 4e-4 } }],
  ['cispo', { ...plain, clip: { low: 1, high: 4, on: 'weight' } }],
  ['igpo', { ...plain, clip: { low: 0.2, high: 0.2 } }],
] as const)('%s is this loss', async (name, expected) => {
  expect(await loss(name)).toEqual(expected);
});

test('what a spec writes stands, and what it leaves out is not on the wire', async () => {
  const stage = '+curriculum.stage1.algorithm';
  expect(
    await loss(
      'gspo',
      `${stage}.clip={ high: 0.01, dual: 3 }`,
      `${stage}.entropy=0.01`,
      `${stage}.loss=seq_mean_token_sum`,
      `${stage}.kl={ coefficient: 0.1, estimator: k2 }`,
      `${stage}.importance={ level: sequence, truncate: 2 }`,
    ),
  ).toEqual({
    kind: 'policy_gradient',
    ratio: 'sequence',
    clip: { low: 3e-4, high: 0.01, dual: 3 },
    aggregation: 'seq_mean_token_sum',
    entropy: 0.01,
    kl: { coefficient: 0.1, estimator: 'k2' },
    importance: { level: 'sequence', truncate: 2 },
  });
});
