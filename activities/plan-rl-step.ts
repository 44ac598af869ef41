import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { batchColumns, readParquet, writeParquet } from './adapters/parquet.ts';
import type { StepLedger } from './adapters/step-ledger.ts';
import type { RolloutShard, StageActivities } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { withBeliefs } from './score-beliefs.ts';
import {
  type Attempt,
  attemptOf,
  type GradedRow,
  isInformative,
  stepAdvantages,
  type TurnAdvantages,
  tokenAdvantages,
} from './step-advantages.ts';

export interface PlanRlStepDeps {
  plans: PlanReader;
  store: ArtifactStore;
  ledger: StepLedger;
  progress: NodeProgress;
  /** Scratch space. */
  work: string;
}

export const createPlanRlStepActivities = ({
  plans,
  store,
  ledger,
  progress,
  work,
}: PlanRlStepDeps): Pick<StageActivities, 'planRlStep'> => ({
  /**
   * Score, drop groups that teach nothing, compute advantages over the whole batch in this one place, and fix the
   * step's batch in the ledger. With too few informative prompts, asks for a refill unless it is the last: dapo wants
   * all of them to be (dynamic sampling), others half. Throws BELIEFS when igpo lacks one that it needs.
   */
  planRlStep: ({ node: ref, step, shards, beliefs = [], checkpoint, last }) =>
    withPulse(async (moved) => {
      const { parameters, unkeyed } = nodeOf('rl', await plans.node(ref));
      const { rollout, algorithm, optimizer } = parameters;
      const paths = await Promise.all(shards.map(({ blob }) => store.openBlob(blob)));
      const measured = await Promise.all(beliefs.map((blob) => store.openBlob(blob)));
      const isMeasuredHere = algorithm.igpo !== null && unkeyed.beliefs === 'engine';
      const rows = readGraded(paths, isMeasuredHere, moved);
      const groups = await readGroups(algorithm.igpo === null ? rows : withBeliefs(rows, measured, algorithm.igpo));
      const informative = groups.filter((group) => isInformative(group, parameters));
      const wanted = rollout.prompts_per_step * (algorithm.name === 'dapo' ? 1 : 0.5);
      if (!last && informative.length < wanted) return { usable: false };

      const chosen = informative.length > 0 ? informative.slice(0, rollout.prompts_per_step) : groups;
      const { byTrajectory, metrics } = stepAdvantages(chosen, parameters);
      const trained = new Map(
        chosen.flatMap((group, at) =>
          group.map((attempt): [string, Trained] => [
            attempt.id,
            {
              attempt,
              update: Math.floor(at / optimizer.minibatch),
              advantages: byTrajectory.get(attempt.id) as TurnAdvantages,
            },
          ]),
        ),
      );
      await mkdir(work, { recursive: true });
      const folder = await mkdtemp(join(work, 'rl-'));
      try {
        const path = join(folder, 'batch.parquet');
        await writeParquet(path, trainingRows(paths, trained, rollout.temperature, moved), batchColumns);
        await ledger.plan(ref.key, step, await store.putBlob(path), checkpoint.digest);
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
      await progress.record(ref.key, step, { ...rolloutMetrics(groups, informative.length, shards), ...metrics });
      return { usable: true };
    }),
});

interface Trained {
  attempt: Attempt;
  /** Which of the step's updates it belongs to; groups stay whole. */
  update: number;
  advantages: TurnAdvantages;
}

const GRADED = ['trajectory_id', 'group_id', 'sample', 'branch', 'reward', 'score', 'termination', 'spans'];

/** Infrastructure failures are masked here: they are counted by their shard, never scored. */
async function* readGraded(
  paths: readonly string[],
  withOwnBeliefs: boolean,
  moved: () => void,
): AsyncGenerator<GradedRow> {
  const columns = withOwnBeliefs ? [...GRADED, 'beliefs'] : GRADED;
  for (const path of paths) {
    for await (const row of readParquet<GradedRow>(path, columns)) {
      moved();
      if (row.termination !== 'failed') yield row;
    }
  }
}

/** Groups in the order they were sampled, each of trajectories with all their branches. */
async function readGroups(rows: AsyncIterable<GradedRow>): Promise<Attempt[][]> {
  const groups = new Map<string, Map<string, GradedRow[]>>();
  for await (const row of rows) {
    const group = groups.get(row.group_id) ?? new Map<string, GradedRow[]>();
    groups.set(row.group_id, group.set(row.trajectory_id, [...(group.get(row.trajectory_id) ?? []), row]));
  }
  return [...groups.values()].map((group) => [...group.values()].map(attemptOf).sort((a, b) => a.sample - b.sample));
}

type TokenRow = Pick<Trajectory, 'trajectory_id' | 'branch' | 'token_ids' | 'mask' | 'logprobs'>;

/** Rows of the trainer's batch: the sampled ids and their behaviour logprobs, with an advantage on every sampled token. */
async function* trainingRows(
  paths: readonly string[],
  trained: ReadonlyMap<string, Trained>,
  temperature: number,
  moved: () => void,
) {
  for (const path of paths) {
    for await (const row of readParquet<TokenRow>(path, ['trajectory_id', 'branch', 'token_ids', 'mask', 'logprobs'])) {
      moved();
      const found = trained.get(row.trajectory_id);
      if (found === undefined) continue;
      const { attempt, advantages, update } = found;
      yield {
        sequence_id: `${row.trajectory_id}#${row.branch}`,
        token_ids: row.token_ids,
        mask: row.mask,
        behavior_logprobs: row.logprobs,
        advantages: tokenAdvantages(advantages, attempt.turns, row.branch, row.token_ids.length),
        temperature,
        weight: 1,
        update,
        turn_rewards: advantages.rewards?.filter((_, at) => attempt.turns[at]?.branch === row.branch) ?? null,
      };
    }
  }
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

function rolloutMetrics(
  groups: readonly (readonly Attempt[])[],
  informative: number,
  shards: readonly RolloutShard[],
): Record<string, number> {
  const all = groups.flat();
  return {
    'rollout/pass_rate': mean(all.map(({ score }) => score.exact_match)),
    'rollout/reward': mean(all.map(({ outcome }) => outcome)),
    'rollout/f1': mean(all.map(({ score }) => score.f1)),
    'rollout/format_valid': mean(all.map(({ score }) => (score.format_valid ? 1 : 0))),
    'rollout/turns': mean(all.map(({ turns }) => turns.length)),
    'rollout/action_tokens': mean(all.map(({ turns }) => turns.reduce((sum, { start, end }) => sum + end - start, 0))),
    'rollout/answered': mean(all.map(({ termination }) => (termination === 'answer' ? 1 : 0))),
    'rollout/groups': groups.length,
    'rollout/groups_informative': informative,
    'rollout/trajectories': all.length,
    'rollout/failed': shards.reduce((sum, { failed }) => sum + failed, 0),
  };
}
