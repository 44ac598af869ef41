/** Beliefs by the trainer: one forward over each trajectory, with the reference answer tried before its turns. */
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { isMeasured } from '../environments/deep-research/advantages-igpo.ts';
import { type BeliefScope, referenceText } from '../environments/deep-research/beliefs.ts';
import { renderPseudoAnswer, type Tokenizer } from '../environments/deep-research/prompt.ts';
import { type BranchRow, turnsOf } from '../environments/deep-research/trajectory-turns.ts';
import { ExpError } from '../schemas/errors.ts';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { beliefColumns, readParquet, writeParquet } from './adapters/parquet.ts';
import type { NodeRef, RolloutShard } from './index.ts';
import type { PlanReader } from './plan-reader.ts';
import { unlisted } from './read-shards.ts';
import { readTasks } from './task-files.ts';

export interface ScoreBeliefsDeps {
  plans: PlanReader;
  store: ArtifactStore;
  /** Tokenizers by registry name of the base model. */
  tokenizers: { load(model: string): Promise<Tokenizer> };
  /** Scratch space. */
  work: string;
}

export interface BeliefRequest {
  batch: string;
  out: string;
  temperature: number;
}

/** Have the trainer measure the beliefs of sealed shards; returns the blob of its answer, one row a branch. */
export async function scoreBeliefs(
  { plans, store, tokenizers, work }: ScoreBeliefsDeps,
  ref: NodeRef,
  shards: readonly RolloutShard[],
  ask: (request: BeliefRequest) => Promise<unknown>,
): Promise<string> {
  const { algorithm, rollout, policy } = nodeOf('rl', await plans.node(ref)).parameters;
  if (algorithm.igpo === null) throw new ExpError('PLAN', ref.id, `${algorithm.name} has no beliefs`);
  const paths = await Promise.all((await unlisted(store, shards)).map(({ blob }) => store.openBlob(blob)));
  const boundaries = await boundariesOf(paths, algorithm.igpo);
  const answers = new Map<string, string>();
  for await (const { task_id, answer } of readTasks(store, await plans.input(ref, 'tasks')))
    answers.set(task_id, answer);
  const tokenizer = await tokenizers.load(policy.model);
  await mkdir(work, { recursive: true });
  const folder = await mkdtemp(join(work, 'beliefs-'));
  try {
    const [batch, out] = [join(folder, 'batch.parquet'), join(folder, 'beliefs.parquet')];
    await writeParquet(batch, beliefRows(paths, boundaries, answers, tokenizer), beliefColumns);
    await ask({ batch, out, temperature: rollout.temperature });
    return await store.putBlob(out);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Rows with the beliefs the trainer measured, put back before their turns. */
export async function* withBeliefs<Row extends Placed>(
  rows: AsyncIterable<Row>,
  answers: readonly string[],
  wanted: BeliefScope,
): AsyncGenerator<Row & BranchRow> {
  const found = new Map<string, number[]>();
  for (const path of answers)
    for await (const row of readParquet<{ sequence_id: string; beliefs: number[] }>(path))
      found.set(row.sequence_id, row.beliefs);
  const all: Row[] = [];
  for await (const row of rows) all.push(row);
  const measured = measuredTurns(all, wanted);
  for (const row of all) {
    const id = sequenceId(row);
    const beliefs = found.get(id);
    if (beliefs === undefined) yield row;
    else {
      const turns = measured.get(id) ?? [];
      const starts = row.spans.filter(({ kind }) => kind === 'action').map(({ start }) => start);
      yield { ...row, beliefs: starts.map((start) => beliefs[turns.indexOf(start)] ?? null) };
    }
  }
}

type Placed = Pick<Trajectory, 'trajectory_id' | 'branch' | 'spans' | 'termination'>;

const sequenceId = ({ trajectory_id, branch }: Pick<Placed, 'trajectory_id' | 'branch'>): string =>
  `${trajectory_id}#${branch}`;

/** Where turns begin before which a belief is wanted, by sequence; none of a trajectory that is an answer alone. */
function measuredTurns(rows: readonly Placed[], wanted: BeliefScope): Map<string, number[]> {
  const branches = new Map<string, Placed[]>();
  for (const row of rows) branches.set(row.trajectory_id, [...(branches.get(row.trajectory_id) ?? []), row]);
  const measured = new Map<string, number[]>();
  for (const [trajectory_id, own] of branches) {
    const turns = turnsOf(own);
    for (const [at, { branch, start }] of turns.entries()) {
      if (turns.length < 2 || !isMeasured(at, turns[at - 1]?.tool ?? null, wanted)) continue;
      const id = sequenceId({ trajectory_id, branch });
      measured.set(id, [...(measured.get(id) ?? []), start]);
    }
  }
  return measured;
}

async function boundariesOf(paths: readonly string[], wanted: BeliefScope): Promise<Map<string, number[]>> {
  const rows: Placed[] = [];
  for (const path of paths)
    for await (const row of readParquet<Placed>(path, ['trajectory_id', 'branch', 'spans', 'termination']))
      if (row.termination !== 'failed') rows.push(row);
  return measuredTurns(rows, wanted);
}

type TokenRow = Pick<Trajectory, 'trajectory_id' | 'branch' | 'task_id' | 'token_ids'>;

async function* beliefRows(
  paths: readonly string[],
  boundaries: ReadonlyMap<string, number[]>,
  answers: ReadonlyMap<string, string>,
  tokenizer: Tokenizer,
) {
  for (const path of paths)
    for await (const row of readParquet<TokenRow>(path, ['trajectory_id', 'branch', 'task_id', 'token_ids'])) {
      const sequence_id = sequenceId(row);
      const before = boundaries.get(sequence_id);
      if (before === undefined) continue;
      const answer = answers.get(row.task_id);
      if (answer === undefined) throw new ExpError('TASKS', row.task_id, 'its reference answer is not among the tasks');
      const { token_ids, mask } = renderPseudoAnswer(tokenizer, referenceText(answer));
      yield {
        sequence_id,
        // Nothing after the last boundary is looked at.
        token_ids: row.token_ids.slice(0, before.at(-1)),
        boundaries: before,
        suffix_ids: token_ids,
        suffix_mask: mask,
      };
    }
}
