import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { chooseGroups } from '../environments/deep-research/choose-groups.ts';
import { RolloutHealth, type WatchedTrajectory } from '../environments/deep-research/rollout-health.ts';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { batchColumns, readParquet, writeParquet } from './adapters/parquet.ts';
import type { StepLedger } from './adapters/step-ledger.ts';
import type { RolloutShard, StageActivities } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { unlisted } from './read-shards.ts';
import { withBeliefs } from './score-beliefs.ts';
import {
  type Attempt,
  attemptOf,
  type GradedRow,
  isInformative,
  noAdvantages,
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
   * Score, drop groups that teach nothing or are outside the bounds, compute advantages over the whole batch in this one
   * place, and fix the step's batch in the ledger. Asks for as many groups as it is short of, unless no refill follows.
   * Throws BELIEFS when igpo lacks one that it needs.
   */
  planRlStep: ({ node: ref, step, shards, beliefs = [], checkpoint, last }) =>
    withPulse(async (moved) => {
      const { parameters, unkeyed } = nodeOf('rl', await plans.node(ref));
      const { rollout, algorithm, optimizer, keep } = parameters;
      const paths = await Promise.all((await unlisted(store, shards)).map(({ blob }) => store.openBlob(blob)));
      const measured = await Promise.all(beliefs.map((blob) => store.openBlob(blob)));
      const isMeasuredHere = algorithm.igpo !== null && unkeyed.beliefs === 'engine';
      const rows = readGraded(paths, isMeasuredHere, moved);
      const groups = await readGroups(algorithm.igpo === null ? rows : withBeliefs(rows, measured, algorithm.igpo));
      const rule = { perStep: rollout.prompts_per_step, keep };
      const choice = chooseGroups(groups, rule, {
        outcomeOf: ({ outcome }) => outcome,
        teaches: (group) => isInformative(group, parameters),
      });
      if (!last && choice.missing > 0) return { usable: false, missing: choice.missing };

      // A step without a group to learn from is a step all the same, and no larger: with advantages of zero.
      const learns = choice.chosen.length > 0;
      const chosen = learns ? choice.chosen : groups.slice(0, rollout.prompts_per_step);
      const { byTrajectory, metrics } = learns ? stepAdvantages(chosen, parameters) : noAdvantages(chosen);
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
      const health = await rolloutHealth(paths, moved);
      await progress.record(ref.key, step, { ...rolloutMetrics(groups, choice, shards), ...health, ...metrics });
      return { usable: true };
    }),
});

interface Trained {
  attempt: Attempt;
  /** Which of the step's updates it belongs to; groups stay whole. */
  update: number;
  advantages: TurnAdvantages;
}

const GRADED = ['trajectory_id', 'group_id', 'sample', 'branch', 'reward', 'score', 'judge', 'termination', 'spans'];

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

async function rolloutHealth(paths: readonly string[], moved: () => void): Promise<Record<string, number>> {
  const health = new RolloutHealth();
  const columns = ['trajectory_id', 'group_id', 'branch', 'spans', 'messages', 'reward', 'termination'];
  for (const path of paths) {
    for await (const row of readParquet<WatchedTrajectory>(path, columns)) {
      moved();
      health.add(row);
    }
  }
  return health.metrics();
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
        turn_rewards: turnRewards(found, row.branch),
      };
    }
  }
}

/** As `reward.turns` of a trajectory: one for each turn of the branch, null where there is none and for the outcome. */
function turnRewards(
  { attempt: { turns }, advantages: { rewards } }: Trained,
  branch: number,
): (number | null)[] | null {
  if (rewards === undefined) return null;
  return turns.flatMap((turn, at) =>
    turn.branch === branch ? [at < turns.length - 1 ? (rewards[at] ?? null) : null] : [],
  );
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

function rolloutMetrics(
  groups: readonly (readonly Attempt[])[],
  { chosen, outside }: { chosen: readonly unknown[]; outside: number },
  shards: readonly RolloutShard[],
): Record<string, number> {
  const all = groups.flat();
  return {
    'rollout/pass_rate': mean(all.map(({ right }) => (right ? 1 : 0))),
    'rollout/reward': mean(all.map(({ outcome }) => outcome)),
    'rollout/f1': mean(all.map(({ score }) => score.f1)),
    'rollout/format_valid': mean(all.map(({ score }) => (score.format_valid ? 1 : 0))),
    'rollout/turns': mean(all.map(({ turns }) => turns.length)),
    'rollout/action_tokens': mean(all.map(({ turns }) => turns.reduce((sum, { start, end }) => sum + end - start, 0))),
    'rollout/answered': mean(all.map(({ termination }) => (termination === 'answer' ? 1 : 0))),
    'rollout/groups': groups.length,
    'rollout/groups_trained': chosen.length,
    'rollout/groups_outside': outside,
    'rollout/trajectories': all.length,
    'rollout/failed': shards.reduce((sum, { failed }) => sum + failed, 0),
  };
}
