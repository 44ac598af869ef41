/** Which groups of a step are trained on: the rule of the profile, applied to what was just sampled. Pure. */
import { isPass } from './pass-rates.ts';

/** Bounds on the passes of `of` rollouts; a group of another size is measured by shares. */
export interface GroupKeep {
  min_passes: number;
  max_passes: number;
  of: number;
}

export interface GroupRule {
  /** Groups that an update takes. */
  perStep: number;
  /** Null where no bounds are declared. */
  keep: GroupKeep | null;
}

/** How a member of a group is read. */
export interface Reading<M> {
  /** Reward of a trajectory's outcome. */
  outcomeOf(member: M): number;
  /** Whether the group has an advantage anywhere; what that takes is the algorithm's to say. */
  teaches(group: readonly M[]): boolean;
}

export interface Choice<M> {
  chosen: (readonly M[])[];
  /** Groups that the update is short of. */
  missing: number;
  /** Groups that taught something and were outside the bounds. */
  outside: number;
}

/**
 * Groups within the bounds that teach something, in the order they were sampled, as many as an update takes (dynamic
 * sampling: DAPO, arXiv:2503.14476, section 3.2). Masked rollouts are not among the members, so they count as nothing.
 */
export function chooseGroups<M>(
  groups: readonly (readonly M[])[],
  { perStep, keep }: GroupRule,
  { outcomeOf, teaches }: Reading<M>,
): Choice<M> {
  const teaching = groups.filter((group) => group.length > 0 && teaches(group));
  const within = teaching.filter((group) => keep === null || isWithin(group.map(outcomeOf), keep));
  const chosen = within.slice(0, perStep);
  return { chosen, missing: perStep - chosen.length, outside: teaching.length - within.length };
}

/** With whole numbers, so that a bound that is met is not missed by rounding. */
function isWithin(outcomes: readonly number[], { min_passes, max_passes, of }: GroupKeep): boolean {
  const passes = outcomes.filter(isPass).length;
  return passes * of >= min_passes * outcomes.length && passes * of <= max_passes * outcomes.length;
}
