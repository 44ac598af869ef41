/** Which tasks are worth training on, by how often they are solved. Pure. */

/** Bounds on passes, both inclusive. */
export interface Keep {
  min_passes: number;
  max_passes: number;
}

/** Rollouts of one task. Those that something outside the policy broke (masked) count neither as passes nor as failures. */
export interface TaskTally {
  /** Counted. */
  rollouts: number;
  masked: number;
  passes: number;
}

/** A task passes with the full outcome reward; format penalties and partial credit do not. */
export const isPass = (outcome: number): boolean => outcome >= 1;

export const isKept = ({ rollouts, passes }: TaskTally, { min_passes, max_passes }: Keep): boolean =>
  rollouts > 0 && passes >= min_passes && passes <= max_passes;

/** A task's pass rate is sampled in at most so many rounds: between rounds the engine waits for the slowest trajectory. */
export const ROUNDS = 4;

/**
 * How many of its `total` rollouts a task shall be sampled with next; 0 once its side is decided, whatever the rest
 * would give. Never fewer than could decide it, and so many that `total` is reached within the rounds that are left:
 * the only rollouts beyond those of one-by-one sampling are the price of not waiting for each.
 */
export function drawsInRound(tally: TaskTally, keep: Keep, total: number, round: number): number {
  const left = total - tally.rollouts - tally.masked;
  if (left <= 0) return 0;
  const least = drawsToDecide(tally, keep, left);
  if (least === 0) return 0;
  return Math.min(left, Math.max(least, Math.ceil(left / Math.max(1, ROUNDS - round))));
}

/** The fewest of the `left` rollouts after which the task could be kept or dropped for certain. */
function drawsToDecide({ rollouts, passes }: TaskTally, { min_passes, max_passes }: Keep, left: number): number {
  const toKeep = Math.max(
    rollouts === 0 ? 1 : 0, // a task of which nothing is known is not kept
    Math.max(0, min_passes - passes) + Math.max(0, passes + left - max_passes),
  );
  const toExceed = max_passes + 1 - passes;
  const toMiss = passes + left - min_passes + 1;
  return Math.max(0, Math.min(left, toKeep, toExceed, toMiss));
}

/** Bounds that drop nothing only measure: then every rollout is wanted. */
export const filters = ({ min_passes, max_passes }: Keep, total: number): boolean =>
  min_passes > 0 || max_passes < total;
