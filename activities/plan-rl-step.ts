import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { grpoAdvantages, isUninformative } from '../environments/deep-research/advantages.ts';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { batchColumns, readParquet, writeParquet } from './adapters/parquet.ts';
import type { StepLedger } from './adapters/step-ledger.ts';
import type { RolloutShard, StageActivities } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';

export interface PlanRlStepDeps {
  plans: PlanReader;
  store: ArtifactStore;
  ledger: StepLedger;
  progress: NodeProgress;
  /** Scratch space. */
  work: string;
}

/** What advantages need of a trajectory; tokens stay in their shard until the batch is written. */
type Graded = Pick<Trajectory, 'trajectory_id' | 'group_id' | 'reward' | 'score' | 'termination' | 'spans' | 'sample'>;

export const createPlanRlStepActivities = ({
  plans,
  store,
  ledger,
  progress,
  work,
}: PlanRlStepDeps): Pick<StageActivities, 'planRlStep'> => ({
  /**
   * Score, drop groups that teach nothing, compute advantages over the whole batch in this one place, and fix the
   * step's batch in the ledger. With fewer than half of the prompts informative, asks for a refill unless it is the last.
   */
  planRlStep: ({ node: ref, step, shards, checkpoint, last }) =>
    withPulse(async (moved) => {
      const { rollout, algorithm } = nodeOf('rl', await plans.node(ref)).parameters;
      const paths = await Promise.all(shards.map(({ blob }) => store.openBlob(blob)));
      const groups = await readGroups(paths, moved);
      const informative = [...groups.values()].filter((group) => !isUninformative(group.map(outcomeOf)));
      if (!last && informative.length < rollout.prompts_per_step / 2) return { usable: false };

      const chosen = informative.length > 0 ? informative.slice(0, rollout.prompts_per_step) : [...groups.values()];
      const advantages = new Map(
        chosen.flatMap((group) => {
          const values = grpoAdvantages(group.map(outcomeOf), { normalizeStd: algorithm.normalize_std });
          return group.map(({ trajectory_id }, index) => [trajectory_id, values[index] as number] as const);
        }),
      );
      await mkdir(work, { recursive: true });
      const folder = await mkdtemp(join(work, 'rl-'));
      try {
        const path = join(folder, 'batch.parquet');
        await writeParquet(path, trainingRows(paths, advantages, rollout.temperature, moved), batchColumns);
        await ledger.plan(ref.key, step, await store.putBlob(path), checkpoint.digest);
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
      await progress.record(ref.key, step, rolloutMetrics(groups, informative.length, shards));
      return { usable: true };
    }),
});

const outcomeOf = ({ reward }: Graded): number => reward.outcome;

/** Trajectories by group. Infrastructure failures are masked here: they are counted by their shard, never scored. */
async function readGroups(paths: readonly string[], moved: () => void): Promise<Map<string, Graded[]>> {
  const columns = ['trajectory_id', 'group_id', 'reward', 'score', 'termination', 'spans', 'sample'];
  const groups = new Map<string, Graded[]>();
  for (const path of paths) {
    for await (const row of readParquet<Graded>(path, columns)) {
      moved();
      if (row.termination === 'failed') continue;
      groups.set(row.group_id, [...(groups.get(row.group_id) ?? []), row]);
    }
  }
  for (const group of groups.values()) group.sort((a, b) => a.sample - b.sample);
  return groups;
}

type TokenRow = Pick<Trajectory, 'trajectory_id' | 'branch' | 'token_ids' | 'mask' | 'logprobs'>;

/** Rows of the trainer's batch: the sampled ids and their behaviour logprobs, with an advantage on every sampled token. */
async function* trainingRows(
  paths: readonly string[],
  advantages: ReadonlyMap<string, number>,
  temperature: number,
  moved: () => void,
) {
  for (const path of paths) {
    for await (const row of readParquet<TokenRow>(path, ['trajectory_id', 'branch', 'token_ids', 'mask', 'logprobs'])) {
      moved();
      const advantage = advantages.get(row.trajectory_id);
      if (advantage === undefined) continue;
      yield {
        sequence_id: `${row.trajectory_id}#${row.branch}`,
        token_ids: row.token_ids,
        mask: row.mask,
        behavior_logprobs: row.logprobs,
        advantages: row.mask.map((sampled) => (sampled === 1 ? advantage : 0)),
        temperature,
        weight: 1,
      };
    }
  }
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

function rolloutMetrics(
  groups: ReadonlyMap<string, Graded[]>,
  informative: number,
  shards: readonly RolloutShard[],
): Record<string, number> {
  const all = [...groups.values()].flat();
  const actions = (row: Graded) => row.spans.filter(({ kind }) => kind === 'action');
  return {
    'rollout/pass_rate': mean(all.map(({ score }) => score.exact_match)),
    'rollout/reward': mean(all.map(outcomeOf)),
    'rollout/f1': mean(all.map(({ score }) => score.f1)),
    'rollout/format_valid': mean(all.map(({ score }) => (score.format_valid ? 1 : 0))),
    'rollout/turns': mean(all.map((row) => actions(row).length)),
    'rollout/action_tokens': mean(all.map((row) => actions(row).reduce((sum, { start, end }) => sum + end - start, 0))),
    'rollout/answered': mean(all.map(({ termination }) => (termination === 'answer' ? 1 : 0))),
    'rollout/groups': groups.size,
    'rollout/groups_informative': informative,
    'rollout/trajectories': all.length,
    'rollout/failed': shards.reduce((sum, { failed }) => sum + failed, 0),
  };
}
