/**
 * Curves of an rl stage that a limit may be set on and that a report may show by name, each recorded at every step where it
 * applies. Those below `train/` are what the trainer answers to `step` (trainer/tests/test_step.py), those below `rollout/`
 * what a batch is planned with (tests/unit/context.test.ts).
 */
export const HEALTH_METRICS = [
  'train/entropy',
  'train/clip_share',
  'train/kl_behavior',
  'train/kl_reference',
  'train/grad_norm',
  'train/loss',
  'train/mismatch_abs',
  'train/mismatch_max',
  'train/mismatch_p99',
  'train/ratio_mean',
  'rollout/action_tokens',
  'rollout/answer_tokens',
  'rollout/answered',
  'rollout/failed_share',
  'rollout/format_valid',
  'rollout/groups_same_share',
  'rollout/pass_rate',
  'rollout/repeat_rate',
  'rollout/reward',
  'rollout/tool_error_rate',
  'rollout/turns',
  'igpo/ig_active_ratio',
] as const;
