import type { NodeKind } from '../schemas/plan.ts';

/** Raised when a kind's executor begins to produce other results from the same parameters. Enters every key. */
export const KIND_VERSIONS: Readonly<Record<NodeKind, number>> = {
  corpus: 1,
  index: 1,
  tasks: 2,
  trajectories: 2,
  profile: 2,
  sft: 2,
  rl: 2,
  benchmark: 2,
  report: 1,
};
