/** From the trajectories of a step to an advantage for each of their turns, by the algorithm of the stage. Pure. */
import { grpoAdvantages, isUninformative, overlongPenalty } from '../environments/deep-research/advantages.ts';
import {
  type IgpoAdvantages,
  type IgpoOptions,
  type IgpoRollout,
  igpoAdvantages,
  missingBelief,
  type TurnCredits,
  teachesNothing,
  turnRewards,
} from '../environments/deep-research/advantages-igpo.ts';
import { isRight } from '../environments/deep-research/judge.ts';
import { type TrajectoryTurn, turnsOf } from '../environments/deep-research/trajectory-turns.ts';
import { ExpError } from '../schemas/errors.ts';
import type { AlgorithmParameters, RewardParameters } from '../schemas/node-parameters.ts';
import type { Trajectory } from '../schemas/trajectory.ts';

/** What advantages need of one branch of a trajectory; tokens stay in their shard until the batch is written. */
export type GradedRow = Pick<
  Trajectory,
  'trajectory_id' | 'group_id' | 'sample' | 'branch' | 'reward' | 'score' | 'judge' | 'termination' | 'spans'
> & { beliefs?: readonly (number | null)[] };

/** A trajectory with all its branches: it counts once, however many training samples it is. */
export interface Attempt {
  id: string;
  sample: number;
  outcome: number;
  score: Trajectory['score'];
  right: boolean;
  termination: Trajectory['termination'];
  turns: TrajectoryTurn[];
  /** Of its longest branch. */
  length: number;
}

/** What a trajectory is trained with; rewards where the algorithm rewards turns. */
export type TurnAdvantages = Omit<TurnCredits, 'rewards'> & Partial<Pick<TurnCredits, 'rewards'>>;

export interface LearningRule {
  algorithm: AlgorithmParameters;
  reward: Pick<RewardParameters, 'format_penalty'>;
  context_length: number;
}

export function attemptOf(rows: readonly GradedRow[]): Attempt {
  const [first] = rows as [GradedRow];
  const last = rows.reduce((latest, row) => (row.branch > latest.branch ? row : latest), first);
  return {
    id: first.trajectory_id,
    sample: first.sample,
    outcome: last.reward.outcome,
    score: last.score,
    right: isRight(last),
    termination: last.termination,
    turns: turnsOf(rows),
    length: Math.max(...rows.map(({ spans }) => spans.at(-1)?.end ?? 0)),
  };
}

/** Whether comparing the group's trajectories gives any of them an advantage. DAPO's shaping is no part of it. */
export function isInformative(group: readonly Attempt[], rule: LearningRule): boolean {
  const igpo = igpoOptions(rule);
  if (igpo === null) return !isUninformative(group.map(({ outcome }) => outcome));
  return !teachesNothing(group.map((attempt) => turnRewards(igpoRollout(attempt, igpo, rule), igpo)));
}

/** Advantages by trajectory id, over the whole batch, and what is worth watching of them. */
export function stepAdvantages(
  groups: readonly (readonly Attempt[])[],
  rule: LearningRule,
): { byTrajectory: Map<string, TurnAdvantages>; metrics: Record<string, number> } {
  const igpo = igpoOptions(rule);
  if (igpo === null) return { byTrajectory: groupRelative(groups, rule), metrics: {} };
  const computed = igpoAdvantages(
    groups.map((group) => group.map((attempt) => igpoRollout(attempt, igpo, rule))),
    igpo,
  );
  const credits = computed.credits.flat();
  const byTrajectory = new Map(groups.flat().map(({ id }, at) => [id, credits[at] as TurnCredits]));
  return { byTrajectory, metrics: igpoMetrics(computed) };
}

/** For groups that teach nothing. */
export function noAdvantages(groups: readonly (readonly Attempt[])[]): ReturnType<typeof stepAdvantages> {
  const zeros = groups.flat().map(({ id, turns }) => [id, { advantages: turns.map(() => 0) }] as const);
  return { byTrajectory: new Map(zeros), metrics: {} };
}

/** The advantages of one branch's tokens; 0 where nothing was sampled. */
export function tokenAdvantages(
  { advantages: ofTurns, steps }: TurnAdvantages,
  placed: readonly TrajectoryTurn[],
  branch: number,
  length: number,
): number[] {
  const advantages = new Array<number>(length).fill(0);
  let first = 0;
  let step = 0;
  for (const [at, turn] of placed.entries()) {
    if (turn.branch === branch)
      for (let token = turn.start; token < turn.end; token += 1) {
        const position = first + token - turn.start;
        while (steps !== undefined && (steps[step + 1]?.[0] ?? Number.POSITIVE_INFINITY) <= position) step += 1;
        advantages[token] = steps?.[step]?.[1] ?? (ofTurns[at] as number);
      }
    first += turn.tokens;
  }
  return advantages;
}

function groupRelative(groups: readonly (readonly Attempt[])[], rule: LearningRule): Map<string, TurnAdvantages> {
  return new Map(
    groups.flatMap((group) => {
      const rewards = group.map((attempt) => shapedOutcome(attempt, rule));
      const values = grpoAdvantages(rewards, { normalizeStd: rule.algorithm.normalize_std });
      return group.map(({ id, turns }, at) => [id, { advantages: turns.map(() => values[at] as number) }] as const);
    }),
  );
}

function shapedOutcome({ outcome, length }: Attempt, { algorithm, context_length }: LearningRule): number {
  return algorithm.overlong === null ? outcome : outcome - overlongPenalty(length, context_length, algorithm.overlong);
}

function igpoOptions({ algorithm, reward }: LearningRule): IgpoOptions | null {
  if (algorithm.igpo === null) return null;
  return { ...algorithm.igpo, formatPenalty: reward.format_penalty, normalizeStd: algorithm.normalize_std };
}

/** The outcome already is the penalty where the answer is malformed, so only turns before it are named malformed. */
function igpoRollout(attempt: Attempt, options: IgpoOptions, rule: LearningRule): IgpoRollout {
  const { id, turns } = attempt;
  const malformed = turns.flatMap((turn, at) => (turn.malformed && at < turns.length - 1 ? [at] : []));
  const rollout = {
    values: turns.map(({ belief }) => belief),
    tools: turns.map(({ tool }) => tool),
    malformed,
    outcome: shapedOutcome(attempt, rule),
    tokens: turns.map(({ tokens }) => tokens),
  };
  const missing = missingBelief(rollout, options);
  if (missing === null) return rollout;
  throw new ExpError(
    'BELIEFS',
    id,
    `there is no belief before turn ${missing}: its gain would silently be none, and igpo be grpo`,
  );
}

/** Named as inclusionAI/DR-Venus names them. */
function igpoMetrics({ credits, scale, gamma }: IgpoAdvantages): Record<string, number> {
  const positions = credits
    .flat()
    .map(({ rewards, advantages }) =>
      rewards.slice(0, -1).flatMap((gain, turn) => (gain === null ? [] : [{ gain, advantage: advantages[turn] ?? 0 }])),
    );
  const gains = positions.flat().map(({ gain }) => gain);
  const center = mean(gains);
  return {
    'igpo/ig_active_ratio': mean(positions.map((own) => (own.length > 0 ? 1 : 0))),
    'igpo/raw_ig_mean': center,
    'igpo/raw_ig_std': Math.sqrt(mean(gains.map((gain) => (gain - center) ** 2))),
    'igpo/raw_ig_positive_ratio': mean(gains.map((gain) => (gain > 0 ? 1 : 0))),
    'igpo/ig_scale': scale,
    'igpo/all_same_outcome_ratio': mean(
      credits.map((group) => (isUninformative(group.map(({ rewards }) => rewards.at(-1) ?? 0)) ? 1 : 0)),
    ),
    'igpo/effective_gamma': gamma,
    'igpo/adv_ig_positions_mean': mean(positions.flat().map(({ advantage }) => advantage)),
  };
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
