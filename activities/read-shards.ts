import { readFile } from 'node:fs/promises';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { readParquet } from './adapters/parquet.ts';
import type { RolloutShard } from './index.ts';

/** What grading needs of a trajectory: everything but its tokens. Over all its branches: see wholeTrajectories. */
export type GradedTrajectory = Pick<
  Trajectory,
  | 'trajectory_id'
  | 'branch'
  | 'task_id'
  | 'group_id'
  | 'sample'
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
  'branch',
  'task_id',
  'group_id',
  'sample',
  'checkpoint',
  'reward',
  'score',
  'judge',
  'spans',
  'termination',
  'failure_class',
  'answer',
] as const;

/** One shard that lists many. */
export async function listShards(store: ArtifactStore, shards: readonly RolloutShard[]): Promise<RolloutShard> {
  const sumOf = (field: 'trajectories' | 'failed') => shards.reduce((sum, shard) => sum + shard[field], 0);
  const blob = await store.putBlob(Buffer.from(JSON.stringify(shards)));
  return { blob, trajectories: sumOf('trajectories'), failed: sumOf('failed'), isList: true };
}

/** Shards of trajectories alone: lists among them are read. */
export async function unlisted(store: ArtifactStore, shards: readonly RolloutShard[]): Promise<RolloutShard[]> {
  const read = async (shard: RolloutShard): Promise<RolloutShard[]> =>
    shard.isList ? (JSON.parse(await readFile(await store.openBlob(shard.blob), 'utf8')) as RolloutShard[]) : [shard];
  return (await Promise.all(shards.map(read))).flat();
}

/** Trajectories of sealed shards without their tokens, one at a time. */
export async function* readGraded(
  store: ArtifactStore,
  shards: readonly RolloutShard[],
): AsyncGenerator<GradedTrajectory> {
  for (const { blob } of await unlisted(store, shards))
    yield* wholeTrajectories(readParquet<GradedTrajectory>(await store.openBlob(blob), COLUMNS));
}

type Mergeable = Pick<Trajectory, 'trajectory_id' | 'branch' | 'spans'> &
  Partial<Pick<Trajectory, 'reward' | 'messages'>>;

/**
 * Rows of a shard with the branches of each trajectory as one, so that a trajectory counts once. Its spans are those of
 * all branches, in order and without what a later branch repeats as its prompt; start and end still count within the
 * branch. Its turn rewards and messages are those of all branches. Branches of a trajectory stand next to each other.
 */
export async function* wholeTrajectories<Row extends Mergeable>(rows: AsyncIterable<Row>): AsyncGenerator<Row> {
  let whole: Row | null = null;
  for await (const row of rows) {
    if (whole !== null && row.branch > 0 && row.trajectory_id === whole.trajectory_id) {
      whole = joined(whole, row);
      continue;
    }
    if (whole !== null) yield whole;
    whole = row;
  }
  if (whole !== null) yield whole;
}

function joined<Row extends Mergeable>(whole: Row, next: Row): Row {
  return {
    ...whole,
    spans: [...whole.spans, ...next.spans.filter(({ kind }) => kind !== 'prompt')],
    ...(whole.reward &&
      next.reward && { reward: { ...whole.reward, turns: [...whole.reward.turns, ...next.reward.turns] } }),
    ...(whole.messages && next.messages && { messages: [...whole.messages, ...next.messages.slice(1)] }),
  };
}

export type DisplayedTrajectory = Pick<Trajectory, 'trajectory_id' | 'branch' | 'task_id' | 'spans' | 'messages'>;

/** The conversations of a few trajectories, for people to read. */
export async function readMessages(
  store: ArtifactStore,
  shards: readonly RolloutShard[],
  ids: ReadonlySet<string>,
): Promise<DisplayedTrajectory[]> {
  const found: DisplayedTrajectory[] = [];
  for (const { blob } of await unlisted(store, shards)) {
    if (found.length === ids.size) break;
    const rows = readParquet<DisplayedTrajectory>(await store.openBlob(blob), [
      'trajectory_id',
      'branch',
      'task_id',
      'spans',
      'messages',
    ]);
    for await (const row of wholeTrajectories(rows)) {
      if (ids.has(row.trajectory_id)) found.push(row);
    }
  }
  return found;
}

/** Tokens of the prompt, the actions and the observations, each once, over all branches. */
export function tokensOf({ spans }: Pick<GradedTrajectory, 'spans'>): number {
  return spans.reduce((sum, { start, end }) => sum + end - start, 0);
}
