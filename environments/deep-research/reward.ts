/**
 * Score is what a grader said, reward is what RL uses. Rewards sit on turns; a turn without a reward position has
 * null, not 0. Pure.
 */
import type { Termination } from '../../schemas/trajectory.ts';
import { contains, f1, isExactMatch, type Reference } from './answer.ts';

export interface RewardRule {
  outcome: 'exact_match' | 'f1' | 'judge';
  /** A malformed turn gets minus this; a malformed answer turn overrides the outcome. 0 switches it off. */
  format_penalty: number;
}

export interface ScoredTurn {
  malformed: boolean;
  /** The observation that followed, '' when there was none. */
  observation: string;
}

export interface Score {
  exact_match: number;
  f1: number;
  format_valid: boolean;
  answer_in_observation: boolean;
}

/** What the grader says; a trajectory without an answer is wrong. */
export function score(answer: string | null, turns: readonly ScoredTurn[], reference: Reference): Score {
  return {
    exact_match: answer !== null && isExactMatch(answer, reference) ? 1 : 0,
    f1: answer === null ? 0 : f1(answer, reference),
    format_valid: turns.length > 0 && turns.every(({ malformed }) => !malformed),
    answer_in_observation: turns.some(({ observation }) => contains(observation, reference)),
  };
}

/**
 * DR-Venus's format penalty by turn: a malformed turn's reward becomes −penalty; on the last turn it replaces the
 * outcome. `turns` has one entry a turn; the last is the outcome's place and stays null.
 */
export function reward(
  graded: Score,
  turns: readonly ScoredTurn[],
  termination: Termination,
  rule: RewardRule,
): { outcome: number; turns: (number | null)[] } {
  const penalties = turns.map(({ malformed }, index) =>
    malformed && rule.format_penalty > 0 && index < turns.length - 1 ? -rule.format_penalty : null,
  );
  const lastIsMalformed = turns.at(-1)?.malformed ?? true;
  const penalised = lastIsMalformed && rule.format_penalty > 0 && termination !== 'failed';
  // A judge is asked afterwards, and only about a well-formed answer.
  const outcome = graded[rule.outcome === 'judge' ? 'exact_match' : rule.outcome];
  return { outcome: penalised ? -rule.format_penalty : outcome, turns: penalties };
}
