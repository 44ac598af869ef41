/**
 * Advantages as pure functions over the whole batch; the trainer never learns which algorithm made them. Dr. GRPO is GRPO
 * without the deviation; DAPO, GSPO and CISPO share GRPO's advantages and differ in the loss, DAPO also in its reward.
 */

/** Keeps a group whose rewards barely differ from blowing up. */
const EPSILON = 1e-6;

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * GRPO (arXiv:2402.03300, section 4.1.2, outcome supervision): each reward minus its group's mean, over the group's
 * standard deviation (population). One advantage per trajectory, the same for all its sampled tokens.
 * Without `normalizeStd` it is the baseline of Dr. GRPO (arXiv:2503.20783).
 */
export function grpoAdvantages(rewards: readonly number[], { normalizeStd }: { normalizeStd: boolean }): number[] {
  const center = mean(rewards);
  if (!normalizeStd) return rewards.map((reward) => reward - center);
  const deviation = Math.sqrt(mean(rewards.map((reward) => (reward - center) ** 2)));
  return rewards.map((reward) => (reward - center) / (deviation + EPSILON));
}

/**
 * What DAPO takes off the reward of a long response (arXiv:2503.14476, equation 13): nothing up to `limit - buffer`
 * tokens, then linearly more, `penalty` at the limit.
 */
export function overlongPenalty(
  tokens: number,
  limit: number,
  { buffer, penalty }: { buffer: number; penalty: number },
): number {
  const over = tokens - (limit - buffer);
  return penalty * Math.min(1, Math.max(0, over / buffer));
}

/** A group whose rewards are all the same has no advantage anywhere: it teaches nothing (DAPO, arXiv:2503.14476, 3.2). */
export const isUninformative = (rewards: readonly number[]): boolean =>
  rewards.every((reward) => reward === rewards[0]);
