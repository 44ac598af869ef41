import { jeffreysInterval, meanOf } from '../environments/deep-research/benchmarks/statistics.ts';
import { drawsInRound, filters, isKept, isPass, type TaskTally } from '../environments/deep-research/pass-rates.ts';
import type { ProfileBody } from '../schemas/artifact.ts';
import type { ProfileParameters } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { RolloutShard } from './index.ts';
import { type GradedTrajectory, readGraded, tokensOf } from './read-shards.ts';

/** One line of `pass_rates.jsonl`. */
export interface PassRate {
  task_id: string;
  capability: string;
  /** Rollouts that count; those that something broke are masked. */
  rollouts: number;
  masked: number;
  passes: number;
  pass_rate: number;
  /** Ends of the 95 % Jeffreys interval. */
  low: number;
  high: number;
  kept: boolean;
  mean_tokens: number;
  /** Which of the declared buckets its mean length is in; null where none are. */
  bucket: number | null;
  /** How often training takes it, compared with the others. */
  weight: number;
}

/** What pass rates are made of: counted lengths by task, and which weights sampled them. */
export interface Measured {
  rates: PassRate[];
  /** Mean over tasks of the rollouts that every task had, however soon it was decided: the pass rate without bias. */
  passRate: number;
  /** Of counted trajectories. */
  lengths: { tokens: number; passed: boolean }[];
  checkpoints: string[];
}

type Rules = Pick<ProfileParameters, 'keep' | 'rollouts' | 'stop_decided' | 'keep_mix' | 'buckets'>;

/** What a pass rate needs of a trajectory; those of all tasks are in memory together. */
export interface Rollout {
  sample: number;
  checkpoint: string;
  isCounted: boolean;
  passed: boolean;
  tokens: number;
}

export const rolloutOf = (trajectory: GradedTrajectory): Rollout => ({
  sample: trajectory.sample,
  checkpoint: trajectory.checkpoint,
  isCounted: trajectory.termination !== 'failed',
  passed: isPass(trajectory.reward.outcome),
  tokens: tokensOf(trajectory),
});

const isCounted = (rollout: Rollout): boolean => rollout.isCounted;

/** What is wanted of each trajectory, by task; of one that was split into branches, the first stands for it. */
export async function readByTask<T>(
  store: ArtifactStore,
  shards: readonly RolloutShard[],
  wanted: (trajectory: GradedTrajectory) => T,
  moved: () => void,
): Promise<Map<string, T[]>> {
  const byTask = new Map<string, T[]>();
  for await (const trajectory of readGraded(store, shards)) {
    moved();
    if (trajectory.branch > 0) continue;
    const known = byTask.get(trajectory.task_id);
    if (known) known.push(wanted(trajectory));
    else byTask.set(trajectory.task_id, [wanted(trajectory)]);
  }
  return byTask;
}

export function tallyOf(rollouts: readonly Rollout[]): TaskTally {
  const counted = rollouts.filter(isCounted);
  return {
    rollouts: counted.length,
    masked: rollouts.length - counted.length,
    passes: counted.filter(({ passed }) => passed).length,
  };
}

/** Rollouts that a task is sampled with in the next round of a profile; 0 when it has had enough. */
export function drawsOf(
  rollouts: readonly Rollout[],
  { keep, rollouts: total, stop_decided }: Rules,
  round: number,
): number {
  const tally = tallyOf(rollouts);
  if (!stop_decided || !filters(keep, total)) return total - tally.rollouts - tally.masked;
  return drawsInRound(tally, keep, total, round);
}

export function measurePassRates(
  byTask: ReadonlyMap<string, Rollout[]>,
  capabilities: ReadonlyMap<string, string>,
  rules: Rules,
): Measured {
  const rates = [...byTask].map(([task_id, rollouts]) =>
    passRateOf(task_id, capabilities.get(task_id) ?? 'unknown', rollouts, rules),
  );
  rates.sort((a, b) => (a.task_id < b.task_id ? -1 : 1));
  const first = drawsOf([], rules, 0);
  const firstRates = [...byTask.values()]
    .map((rollouts) => tallyOf(rollouts.filter(({ sample }) => sample < first)))
    .filter(({ rollouts }) => rollouts > 0)
    .map((tally) => tally.passes / tally.rollouts);
  const all = [...byTask.values()].flat();
  return {
    rates: rules.keep_mix ? withFormerMix(rates) : rates,
    passRate: meanOf(firstRates),
    lengths: all.filter(isCounted).map(({ tokens, passed }) => ({ tokens, passed })),
    checkpoints: [...new Set(all.map(({ checkpoint }) => checkpoint))],
  };
}

function passRateOf(
  task_id: string,
  capability: string,
  rollouts: readonly Rollout[],
  { keep, buckets }: Rules,
): PassRate {
  const tally = tallyOf(rollouts);
  const { value, low, high } = jeffreysInterval({ samples: tally.rollouts, correct: tally.passes });
  const mean_tokens = meanOf(rollouts.filter(isCounted).map(({ tokens }) => tokens));
  const bucket = buckets === null ? null : buckets.edges.filter((edge) => mean_tokens >= edge).length;
  const weight = bucket === null ? 1 : (buckets?.weights?.[bucket] ?? 1);
  return {
    task_id,
    capability,
    ...tally,
    pass_rate: value,
    low,
    high,
    kept: isKept(tally, keep) && weight > 0,
    mean_tokens,
    bucket,
    weight,
  };
}

/** Weights under which the capabilities of kept tasks come as often as they did among all that were profiled. */
function withFormerMix(rates: readonly PassRate[]): PassRate[] {
  const drawn = rates.filter(({ kept }) => kept);
  const total = drawn.reduce((sum, { weight }) => sum + weight, 0);
  return rates.map((rate) => {
    const same = ({ capability }: PassRate) => capability === rate.capability;
    const before = rates.filter(same).length / rates.length;
    const after = drawn.filter(same).reduce((sum, { weight }) => sum + weight, 0) / total;
    return rate.kept && after > 0 ? { ...rate, weight: (rate.weight * before) / after } : rate;
  });
}

/** Counts over all tasks, as a profile's artifact and its report have them. */
export function bodyOf({ rates, checkpoints }: Measured, { rollouts: total }: Rules): ProfileBody {
  const counted = rates.filter(({ rollouts }) => rollouts > 0);
  const drawn = rates.reduce((sum, { rollouts, masked }) => sum + rollouts + masked, 0);
  return {
    tasks: rates.length,
    rollouts: rates.reduce((sum, { rollouts }) => sum + rollouts, 0),
    never: counted.filter(({ passes }) => passes === 0).length,
    sometimes: counted.filter(({ passes, rollouts }) => passes > 0 && passes < rollouts).length,
    always: counted.filter(({ passes, rollouts }) => passes === rollouts).length,
    kept: rates.filter(({ kept }) => kept).length,
    saved: Math.max(0, rates.length * total - drawn),
    checkpoint: checkpoints.join(' '),
    mix: mixOf(rates),
  };
}

function mixOf(rates: readonly PassRate[]): ProfileBody['mix'] {
  const kept = rates.filter((rate) => rate.kept);
  const share = (some: readonly PassRate[], name: string): number =>
    some.length === 0 ? 0 : some.filter(({ capability }) => capability === name).length / some.length;
  const names = [...new Set(rates.map(({ capability }) => capability))].sort();
  return Object.fromEntries(names.map((name) => [name, { before: share(rates, name), after: share(kept, name) }]));
}

/** Numbers of one measurement, for a curve over the steps at which a stage measures again. */
export function profileMetrics(body: ProfileBody, { rates, passRate }: Measured): Record<string, number> {
  return {
    'profile/pass_rate': passRate,
    'profile/never': body.never,
    'profile/sometimes': body.sometimes,
    'profile/always': body.always,
    'profile/kept': body.kept,
    'profile/saved': body.saved,
    'profile/masked': rates.reduce((sum, { masked }) => sum + masked, 0),
    ...Object.fromEntries(
      Object.entries(body.mix).flatMap(([name, { before, after }]) => [
        [`profile/mix_before/${name}`, before],
        [`profile/mix_after/${name}`, after],
      ]),
    ),
  };
}

/** Lines of `pass_rates.jsonl`. */
export const linesOf = (rates: readonly PassRate[]): string =>
  rates.map((rate) => `${JSON.stringify(rate)}\n`).join('');
