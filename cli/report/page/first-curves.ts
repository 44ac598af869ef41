import type { StageMetric } from '../document.ts';

/** Curves of a stage that are shown at once, in this order; the others when asked for. */
export const FIRST_CURVES: readonly StageMetric[] = [
  'rollout/pass_rate',
  'rollout/reward',
  'rollout/answered',
  'rollout/turns',
  'train/loss',
  'train/kl_reference',
  'train/kl_behavior',
  'train/grad_norm',
  'rollout/action_tokens',
];
