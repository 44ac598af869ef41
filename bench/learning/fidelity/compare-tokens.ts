/** The trainer's batch beside what was sampled, and its logprobs beside the trainer's own. */
import { readParquet } from '../../../activities/adapters/parquet.ts';
import type { RolloutSpec } from '../../../activities/prepare-rollouts.ts';
import { turnSeed } from '../../../environments/deep-research/agent-loop.ts';
import type { Exchange } from './recorded-engines.ts';

export interface IdFigures {
  /** Rows of the batch: trajectories, or branches of them. */
  rows: number;
  turns: number;
  /** Sampled tokens. */
  tokens: number;
  /** Trained tokens whose id, or any id before it, is not what the engine answered or was sent; and those missing. */
  ids_differing: number;
  /** Behaviour logprobs in the batch that are not the engine's, as float32. */
  logprobs_differing: number;
}

export interface LogprobFigures {
  /** Of |engine − trainer|, in nats. */
  mean_nats: number;
  p99_nats: number;
  max_nats: number;
  /** Of engine − trainer: not 0 where the engine renormalises over what top_p left. */
  bias_nats: number;
}

interface BatchRow {
  sequence_id: string;
  token_ids: number[];
  mask: number[];
  behavior_logprobs: number[];
}

/** The batch beside what the engine was sent and answered. */
export async function compareIds({
  batch,
  specs,
  sampled,
}: {
  batch: string;
  specs: readonly RolloutSpec[];
  sampled: ReadonlyMap<number, Exchange>;
}): Promise<IdFigures> {
  const seeds = new Map(specs.map(({ trajectory_id, seed }) => [trajectory_id, seed]));
  const turns = new Map<string, number>();
  const figures = { rows: 0, turns: 0, tokens: 0, ids_differing: 0, logprobs_differing: 0 };
  for await (const row of readParquet<BatchRow>(batch)) {
    figures.rows += 1;
    const trajectory = row.sequence_id.replace(/#\d+$/, '');
    for (const { start, end } of actionsOf(row.mask)) {
      const turn = turns.get(trajectory) ?? 0;
      turns.set(trajectory, turn + 1);
      figures.turns += 1;
      figures.tokens += end - start;
      const exchange = sampled.get(turnSeed(seeds.get(trajectory) as number, turn));
      const { token_ids = [], logprobs = [] } = exchange?.completion ?? {};
      const isSent = sameIds(row.token_ids.slice(0, start), exchange?.ids ?? []);
      figures.ids_differing += Math.max(0, token_ids.length - (end - start));
      for (let at = start; at < end; at += 1) {
        if (!isSent || row.token_ids[at] !== token_ids[at - start]) figures.ids_differing += 1;
        if (row.behavior_logprobs[at] !== Math.fround(logprobs[at - start] ?? Number.NaN))
          figures.logprobs_differing += 1;
      }
    }
  }
  for (const [trajectory, seed] of seeds) {
    for (let turn = turns.get(trajectory) ?? 0; ; turn += 1) {
      const lost = sampled.get(turnSeed(seed, turn));
      if (lost === undefined) break;
      figures.ids_differing += lost.completion.token_ids.length;
    }
  }
  return figures;
}

/** The engine's logprobs, as the batch has them, beside the trainer's. */
export async function compareLogprobs({ batch, scores }: { batch: string; scores: string }): Promise<LogprobFigures> {
  const scored = new Map<string, (number | null)[]>();
  for await (const row of readParquet<{ sequence_id: string; logprobs: (number | null)[] }>(scores))
    scored.set(row.sequence_id, row.logprobs);
  const distances: number[] = [];
  for await (const { sequence_id, mask, behavior_logprobs } of readParquet<BatchRow>(batch)) {
    for (const [at, logprob] of behavior_logprobs.entries())
      if (mask[at] === 1) distances.push(logprob - (scored.get(sequence_id)?.[at] ?? Number.NaN));
  }
  return distribution(distances);
}

const sameIds = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((id, at) => id === b[at]);

/** Runs of sampled tokens: between two there is always something that was not. */
function actionsOf(mask: readonly number[]): { start: number; end: number }[] {
  const runs: { start: number; end: number }[] = [];
  for (const [at, bit] of mask.entries()) {
    if (bit === 0) continue;
    const last = runs.at(-1);
    if (last?.end === at) last.end = at + 1;
    else runs.push({ start: at, end: at + 1 });
  }
  return runs;
}

function distribution(distances: readonly number[]): LogprobFigures {
  const sizes = distances.map(Math.abs).sort((a, b) => a - b);
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const round = (value: number): number => Number(value.toPrecision(4));
  return {
    mean_nats: round(mean(sizes)),
    p99_nats: round(sizes[Math.floor(0.99 * (sizes.length - 1))] ?? Number.NaN),
    max_nats: round(sizes.at(-1) ?? Number.NaN),
    bias_nats: round(mean(distances)),
  };
}
