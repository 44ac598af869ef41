/**
 * IGPO (arXiv:2510.14967; inclusionAI/DR-Venus, RL/verl/trainer/ppo/info_gain_advantage.py): each turn is rewarded by
 * what it added to the policy's belief in the reference answer. Pure, and over the whole batch at once: the scale of
 * the gains depends on all groups, so no part of a batch may be computed alone.
 */
import type { IgpoSettings } from '../../schemas/algorithms.ts';

export interface IgpoRollout {
  /** Before each turn: mean log-probability of the reference answer's tokens, in nats. Null where it was not measured. */
  values: readonly (number | null)[];
  /** The tool each turn called; null for an answer, and where no tool can be read. */
  tools: readonly (string | null)[];
  /** Turns whose format is invalid. */
  malformed: readonly number[];
  outcome: number;
  /** From the beginning of each turn to that of the next, observation included. Only `per_position` reads it; 1 when absent. */
  tokens?: readonly number[];
}

export interface IgpoOptions extends IgpoSettings {
  /** A malformed turn's reward is minus this, and so is the outcome of a malformed answer; 0 switches it off. */
  formatPenalty: number;
  /** Divide by the standard deviation of the group. */
  normalizeStd: boolean;
}

/** What a rollout is rewarded for: its turns (null: no reward position) and, at the last turn, its outcome. */
export interface TurnRewards {
  /** One for each turn but the last. */
  gains: (number | null)[];
  outcome: number;
}

/** One value a turn. */
export interface TurnCredits {
  advantages: number[];
  /** What each turn was rewarded with, null where it has no reward position; the last is the outcome. */
  rewards: (number | null)[];
  /** With `per_position`: advantages as they change within turns, [first token, advantage], tokens counted from turn 0. */
  steps?: AdvantageStep[];
}

export interface IgpoAdvantages {
  /** By group and rollout. */
  credits: TurnCredits[][];
  /** What normalised gains were multiplied with to be as large as outcomes; 1 where the mode has no such scale. */
  scale: number;
  /** The discount that was applied. */
  gamma: number;
}

export type AdvantageStep = readonly [from: number, advantage: number];

/** Added to a deviation, and inside its root, as the released code does. */
const EPSILON = 1e-6;
const VARIANCE_EPSILON = 1e-8;
/** IG-Scale: gains stay alive in a batch whose outcomes all agree, and small gains are not blown up without end. */
const LEAST_OUTCOME = 0.3;
const MOST_SCALE = 10;
/**
 * The released code takes "reward is not 0" for "has a reward", and writes a gain of exactly 0 as this. Positions are
 * explicit here; the number is kept so that results agree with it to the last digits.
 */
const ZERO_GAIN = 1e-10;

/** Whether the belief before this turn is measured: at the beginning, and after a turn within the scope. */
export function isMeasured(
  turn: number,
  toolBefore: string | null,
  { scope, every }: Pick<IgpoSettings, 'scope' | 'every'>,
): boolean {
  if (turn === 0) return true;
  if (turn % every !== 0) return false;
  return scope === null || (toolBefore !== null && scope.includes(toolBefore.toLowerCase()));
}

/** The first turn before which a belief is needed and not there; null when all are there. */
export function missingBelief({ values, tools }: IgpoRollout, settings: IgpoSettings): number | null {
  const turn = values.findIndex(
    (value, at) => value === null && values.length > 1 && isMeasured(at, tools[at - 1] ?? null, settings),
  );
  return turn < 0 ? null : turn;
}

/**
 * The gain of a turn is the belief after it less the last belief that was measured, so a visit absorbs the searches
 * before it. A malformed turn's penalty takes the place of its gain, and is a reward position also where none was.
 */
export function turnRewards(rollout: IgpoRollout, options: IgpoOptions): TurnRewards {
  const { values, tools, malformed, outcome } = rollout;
  const belief = (turn: number): number => {
    const value = values[turn];
    if (value === null || value === undefined) throw new Error(`no belief before turn ${turn}`);
    return options.measure === 'prob' ? Math.exp(value) : value;
  };
  const last = values.length - 1;
  const isPenalised = (turn: number): boolean => options.formatPenalty > 0 && malformed.includes(turn);
  const gains: (number | null)[] = [];
  let before = last > 0 ? belief(0) : 0;
  for (let turn = 0; turn < last; turn += 1) {
    let gain: number | null = null;
    if (isMeasured(turn + 1, tools[turn] ?? null, options)) {
      const after = belief(turn + 1);
      gain = Number.isFinite(after - before) ? after - before : 0;
      before = after;
    }
    gains.push(isPenalised(turn) ? -options.formatPenalty : gain);
  }
  return { gains, outcome: isPenalised(last) ? -options.formatPenalty : outcome };
}

/** Nothing in the group can be compared: its outcomes agree, and so do the rewards of its turns. */
export const teachesNothing = (group: readonly TurnRewards[]): boolean =>
  agree(group.map(({ outcome }) => outcome)) && agree(group.flatMap(({ gains }) => present(gains)));

/**
 * Advantages of all turns of a batch. The discount counts reward positions, not turns: a turn without one has the
 * advantage of the next position. Throws where a belief is missing (`missingBelief` says which).
 */
export function igpoAdvantages(groups: readonly (readonly IgpoRollout[])[], options: IgpoOptions): IgpoAdvantages {
  const rewards = groups.map((group) => group.map((rollout) => turnRewards(rollout, options)));
  if (options.normalize === 'per_position') return perPosition(groups, rewards, options);
  const normalized = rewards.map((group) => normalize(group, options));
  const scale = options.normalize === 'scaled_separate' ? gainScale(normalized.flat()) : 1;
  // With `raw_ig` each gain already carries the outcome, and stands for itself.
  const isRaw = options.normalize === 'raw_ig';
  const gamma = isRaw ? 0 : options.gamma;
  const factor = isRaw ? 1 : options.weight * scale;
  const credits = normalized.map((group, at) =>
    group.map((rollout, index) => ({
      advantages: discounted(rollout, factor, gamma),
      rewards: listed(rewards[at]?.[index]),
    })),
  );
  return { credits, scale, gamma };
}

const listed = (rewards: TurnRewards | undefined): (number | null)[] =>
  rewards === undefined ? [] : [...rewards.gains, rewards.outcome];

function normalize(group: readonly TurnRewards[], { normalize: mode, weight, normalizeStd }: IgpoOptions) {
  const outcomes = group.map(({ outcome }) => outcome);
  const gains = group.flatMap(({ gains }) => present(gains).map(nonZero));
  const ofOutcomes = standardizer(mode === 'joint' ? [...outcomes, ...gains] : outcomes, normalizeStd);
  const ofGains = mode === 'joint' ? ofOutcomes : standardizer(gains, normalizeStd);
  const deviation = deviationOf(gains) + EPSILON;
  return group.map(({ gains, outcome }): TurnRewards => {
    const own = ofOutcomes(outcome);
    const normalized = (gain: number): number =>
      mode === 'raw_ig' ? (weight * gain) / deviation + own : ofGains(gain);
    return { gains: gains.map((gain) => (gain === null ? null : normalized(nonZero(gain)))), outcome: own };
  });
}

function standardizer(values: readonly number[], normalizeStd: boolean): (value: number) => number {
  const center = values.length === 0 ? 0 : mean(values);
  const divisor = normalizeStd ? deviationOf(values) + EPSILON : 1;
  return (value) => (value - center) / divisor;
}

/** Of the population; 1 where there is nothing to deviate from. */
function deviationOf(values: readonly number[]): number {
  if (values.length <= 1) return 1;
  const center = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - center) ** 2)) + VARIANCE_EPSILON);
}

function gainScale(rollouts: readonly TurnRewards[]): number {
  const gains = rollouts.flatMap(({ gains }) => present(gains));
  if (gains.length === 0) return 1;
  const size = (values: readonly number[]): number => mean(values.map(Math.abs));
  const outcome = Math.max(LEAST_OUTCOME, size(rollouts.map(({ outcome }) => outcome)));
  return Math.min(MOST_SCALE, outcome / (size(gains) + EPSILON));
}

function discounted({ gains, outcome }: TurnRewards, factor: number, gamma: number): number[] {
  const advantages = [outcome];
  let next = outcome;
  for (const gain of gains.toReversed()) {
    if (gain !== null) next = factor * gain + gamma * next;
    advantages.push(next);
  }
  return advantages.reverse();
}

/**
 * The first release (GuoqingWang1/IGPO@bff163b, core_algos.compute_grpo_outcome_advantage): raw rewards summed from each
 * token to the end, less the mean over the group at the same token position, where a rollout that has ended counts 0.
 * No deviation. The advantage of a turn is the mean over its tokens; `steps` has each.
 */
function perPosition(
  groups: readonly (readonly IgpoRollout[])[],
  rewards: readonly TurnRewards[][],
  { gamma, weight }: IgpoOptions,
): IgpoAdvantages {
  const credits = groups.map((group, at) => {
    const returns = group.map((rollout, index) => {
      const own = rewards[at]?.[index] as TurnRewards;
      return { own, starts: startsOf(rollout), ahead: discounted(own, weight, gamma) };
    });
    const cuts = [...new Set(returns.flatMap(({ starts }) => starts))].sort((a, b) => a - b);
    const baselines = cuts.map((cut) => [cut, mean(returns.map((one) => returnAt(one, cut)))] as const);
    return returns.map((one): TurnCredits => {
      const steps = baselines
        .filter(([cut]) => cut < (one.starts.at(-1) as number))
        .map(([cut, baseline]): AdvantageStep => [cut, returnAt(one, cut) - baseline]);
      return { advantages: turnMeans(one.starts, steps), rewards: listed(one.own), steps };
    });
  });
  return { credits, scale: 1, gamma };
}

/** The first token of each turn, and the end of the last. */
function startsOf({ values, tokens }: IgpoRollout): number[] {
  const starts = [0];
  for (let turn = 0; turn < values.length; turn += 1) starts.push((starts[turn] as number) + (tokens?.[turn] ?? 1));
  return starts;
}

/** 0 once the rollout has ended. */
function returnAt({ starts, ahead }: { starts: readonly number[]; ahead: readonly number[] }, token: number): number {
  return ahead[starts.findLastIndex((start) => start <= token)] ?? 0;
}

function turnMeans(starts: readonly number[], steps: readonly AdvantageStep[]): number[] {
  return starts.slice(0, -1).map((start, turn) => {
    const end = starts[turn + 1] as number;
    const parts = steps.map(([from, advantage], at) => {
      const to = steps[at + 1]?.[0] ?? (starts.at(-1) as number);
      return advantage * Math.max(0, Math.min(end, to) - Math.max(start, from));
    });
    return parts.reduce((sum, part) => sum + part, 0) / (end - start);
  });
}

const nonZero = (gain: number): number => (gain === 0 ? ZERO_GAIN : gain);
const present = (gains: readonly (number | null)[]): number[] => gains.filter((gain) => gain !== null);
const agree = (values: readonly number[]): boolean => values.every((value) => value === values[0]);
const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
