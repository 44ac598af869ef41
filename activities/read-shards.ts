import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { readParquet } from './adapters/parquet.ts';
import type { RolloutShard } from './index.ts';

/** What grading needs of a trajectory: everything but its tokens. */
export type GradedTrajectory = Pick<
  Trajectory,
  | 'trajectory_id'
  | 'task_id'
  | 'group_id'
  | 'sample'
  | 'branch'
  | 'checkpoint'
  | 'reward'
  | 'score'
  | 'judge'
  | 'spans'
  | 'termination'
  | 'failure_class'
  | 'answer'
>;

const COLUMNS = [
  'trajectory_id',
  'task_id',
  'group_id',
  'sample',
  'branch',
  'checkpoint',
  'reward',
  'score',
  'judge',
  'spans',
  'termination',
  'failure_class',
  'answer',
] as const;

/** Trajectories of sealed shards without their tokens, one at a time. */
export async function* readGraded(
  store: ArtifactStore,
  shards: readonly RolloutShard[],
): AsyncGenerator<GradedTrajectory> {
  for (const { blob } of shards) yield* readParquet<GradedTrajectory>(await store.openBlob(blob), COLUMNS);
}

export type DisplayedTrajectory = Pick<Trajectory, 'trajectory_id' | 'task_id' | 'messages'>;

/** The conversations of a few trajectories, for people to read. */
export async function readMessages(
  store: ArtifactStore,
  shards: readonly RolloutShard[],
  ids: ReadonlySet<string>,
): Promise<DisplayedTrajectory[]> {
  const found: DisplayedTrajectory[] = [];
  for (const { blob } of shards) {
    if (found.length === ids.size) break;
    for await (const row of readParquet<DisplayedTrajectory>(await store.openBlob(blob), [
      'trajectory_id',
      'task_id',
      'messages',
    ])) {
      if (ids.has(row.trajectory_id)) found.push(row);
    }
  }
  return found;
}

export function tokensOf({ spans }: Pick<GradedTrajectory, 'spans'>): number {
  return spans.at(-1)?.end ?? 0;
}
