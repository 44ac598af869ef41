/**
 * Trajectories of a run in two passes: all of them without their texts, for the sums and the sample; then the sampled
 * ones with their texts. What is held grows with the sample, not with the run.
 */
import { columnsOf, readParquet } from '../../activities/adapters/parquet.ts';
import { readTasks } from '../../activities/task-files.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { Task } from '../../schemas/task.ts';
import type { Stack } from '../open-stack.ts';
import { OUTCOMES, type ShownTrajectory, type TrajectoryIndex } from './document.ts';
import type { NodeFacts } from './read-nodes.ts';
import { SeededSample } from './seeded-sample.ts';
import { type GradedRow, outcomeOf, rowId, type ShownRow, showTrajectory, type Trained } from './show-trajectory.ts';
import { actionsOf, Tally, tokensOf } from './tally.ts';
import { findTrajectoryFiles, type TrajectoryFile } from './trajectory-files.ts';

const GRADED = [
  'trajectory_id',
  'task_id',
  'group_id',
  'branch',
  'spans',
  'reward',
  'score',
  'termination',
  'failure_class',
  'answer',
];
const SHOWN = [...GRADED, 'checkpoint', 'sampling', 'messages'];
const CLOSED_BOOK = 'closed_book/';
const CHUNK_SIZE = 100;
/** Of a question in the list. */
const LISTED_CHARACTERS = 200;

/** What the index needs of one trajectory. */
interface Light {
  file: number;
  id: string;
  source: string;
  task_id: string;
  outcome: number;
  termination: string;
  failure: string | null;
  step: number;
  turns: number;
  tokens: number;
  reward: number;
}

export interface ReadTrajectories {
  /** By name of the node. */
  tallies: Map<string, Tally>;
  index: TrajectoryIndex;
  notes: string[];
  /** The sampled ones, in the order of the index. */
  shown(): AsyncGenerator<ShownTrajectory>;
}

export async function readTrajectories(
  stack: Stack,
  nodes: readonly NodeFacts[],
  { most, seed, onFile }: { most: number; seed: string; onFile(done: number, files: number): void },
): Promise<ReadTrajectories> {
  const files = await findTrajectoryFiles(stack, nodes);
  const tallies = new Map<string, Tally>();
  const sample = new SeededSample<Light>(most, seed);
  let gone = 0;
  for (const [at, { node, blob }] of files.entries()) {
    onFile(at, files.length);
    const path = await stack.store.openBlob(blob).catch(ifMissing);
    if (path === null) {
      gone += 1;
      continue;
    }
    const { name } = node.reported;
    const tally = tallies.get(name) ?? new Tally(name, contextLengthOf(node));
    tallies.set(name, tally);
    for await (const row of readParquet<GradedRow>(path, GRADED)) {
      const isClosedBook = row.group_id.startsWith(CLOSED_BOOK);
      tally.add(row, { hadTools: !isClosedBook });
      sample.offer(rowId(row), light(row, at, isClosedBook ? `${name} (closed book)` : name));
    }
  }
  const taken = sample.taken();
  const tasks = await readWanted(stack, nodes, new Set(taken.map(({ task_id }) => task_id)));
  return {
    tallies,
    index: indexOf(taken, sample.offered, tasks),
    notes: [
      ...(gone > 0 ? [`${gone} of ${files.length} files of trajectories are no longer in the store.`] : []),
      ...(taken.length < sample.offered
        ? [
            `${sample.offered - taken.length} of ${sample.offered} trajectories are left out of the reader: it holds a sample drawn with the run's id as its seed. Every number counts all of them.`,
          ]
        : []),
    ],
    shown: () => showAll(stack, files, taken, tasks),
  };
}

function ifMissing(error: unknown): null {
  if (error instanceof ExpError && error.code === 'ARTIFACT_MISSING') return null;
  throw error;
}

function contextLengthOf({ node }: NodeFacts): number {
  return (node.parameters as { context_length?: number }).context_length ?? 1;
}

function light(row: GradedRow, file: number, source: string): Light {
  return {
    file,
    id: rowId(row),
    source,
    task_id: row.task_id,
    outcome: OUTCOMES.indexOf(outcomeOf(row)),
    termination: row.termination,
    failure: row.failure_class,
    // <key>/<step>[.<round>|.eval|.refresh]/<group>/<sample>; demonstrations have no step.
    step: Number.parseInt(/^[0-9a-f]{12}\/(\d+)(?:\.\w+)?\//.exec(row.trajectory_id)?.[1] ?? '0', 10),
    turns: actionsOf(row).length,
    tokens: tokensOf(row),
    reward: row.reward.outcome,
  };
}

/** Tasks by id, from every `tasks` artifact of the run. */
async function readWanted(
  { store }: Stack,
  nodes: readonly NodeFacts[],
  wanted: ReadonlySet<string>,
): Promise<Map<string, Task>> {
  const found = new Map<string, Task>();
  for (const { node, manifest } of nodes) {
    if (node.kind !== 'tasks' || manifest === null) continue;
    for await (const task of readTasks(store, manifest)) if (wanted.has(task.task_id)) found.set(task.task_id, task);
  }
  return found;
}

function indexOf(taken: readonly Light[], total: number, tasks: ReadonlyMap<string, Task>): TrajectoryIndex {
  const sources = new Positions(taken.map(({ source }) => source));
  const taskIds = new Positions(taken.map(({ task_id }) => task_id));
  const terminations = new Positions(taken.map(({ termination }) => termination));
  const failures = new Positions(taken.flatMap(({ failure }) => failure ?? []));
  return {
    total,
    embedded: taken.length,
    chunk_size: CHUNK_SIZE,
    sources: sources.names,
    tasks: taskIds.names.map((id) => ({
      id,
      question: (tasks.get(id)?.question ?? '').slice(0, LISTED_CHARACTERS),
      capability: tasks.get(id)?.capability ?? 'unknown',
    })),
    terminations: terminations.names,
    failures: failures.names,
    columns: {
      id: taken.map(({ id }) => id),
      source: taken.map(({ source }) => sources.of(source)),
      task: taken.map(({ task_id }) => taskIds.of(task_id)),
      outcome: taken.map(({ outcome }) => outcome),
      termination: taken.map(({ termination }) => terminations.of(termination)),
      failure: taken.map(({ failure }) => (failure === null ? -1 : failures.of(failure))),
      step: taken.map(({ step }) => step),
      turns: taken.map(({ turns }) => turns),
      tokens: taken.map(({ tokens }) => tokens),
      reward: taken.map(({ reward }) => reward),
    },
  };
}

/** Distinct names in the order they were first seen, and where each stands. */
class Positions {
  readonly names: string[];
  readonly #at: Map<string, number>;

  constructor(names: readonly string[]) {
    this.names = [...new Set(names)];
    this.#at = new Map(this.names.map((name, at) => [name, at]));
  }

  of(name: string): number {
    return this.#at.get(name) ?? -1;
  }
}

async function* showAll(
  stack: Stack,
  files: readonly TrajectoryFile[],
  taken: readonly Light[],
  tasks: ReadonlyMap<string, Task>,
): AsyncGenerator<ShownTrajectory> {
  const wanted = files.map(() => new Set<string>());
  for (const { file, id } of taken) wanted[file]?.add(id);
  let trained: { key: string; byId: Map<string, Trained> } = { key: '', byId: new Map() };
  for (const [at, { node, blob }] of files.entries()) {
    const ids = wanted[at];
    if (ids === undefined || ids.size === 0) continue;
    const { key } = node.node;
    if (trained.key !== key) {
      const ofNode = taken.filter(({ file }) => files[file]?.node.node.key === key);
      trained = { key, byId: await readTrained(stack, node, new Set(ofNode.map(({ id }) => id))) };
    }
    for await (const row of readParquet<ShownRow>(await stack.store.openBlob(blob), SHOWN)) {
      const id = rowId(row);
      if (ids.has(id)) yield showTrajectory(row, tasks.get(row.task_id) ?? null, trained.byId.get(id) ?? null);
    }
  }
}

/** What trajectories of an `rl` node were trained with, from the batches of its steps. */
async function readTrained(
  { pool, store }: Stack,
  { node }: NodeFacts,
  ids: ReadonlySet<string>,
): Promise<Map<string, Trained>> {
  const found = new Map<string, Trained>();
  if (node.kind !== 'rl') return found;
  const { rows } = await pool.query<{ batch_blob: string }>(
    'select batch_blob from steps where stage_key = $1 order by step',
    [node.key],
  );
  for (const { batch_blob } of rows) {
    const path = await store.openBlob(batch_blob).catch(ifMissing);
    if (path === null) continue;
    type BatchRow = { sequence_id: string; advantages: number[]; turn_rewards?: (number | null)[] | null };
    // Batches of earlier versions rewarded no turns.
    const rewards = (await columnsOf(path)).filter((name) => name === 'turn_rewards');
    for await (const row of readParquet<BatchRow>(path, ['sequence_id', 'advantages', ...rewards])) {
      const id = row.sequence_id.replace(/#0$/, '');
      if (ids.has(id)) found.set(id, { advantages: changesOf(row.advantages), rewards: row.turn_rewards ?? null });
    }
  }
  return found;
}

function changesOf(advantages: readonly number[]): Trained['advantages'] {
  return advantages.flatMap((advantage, at) => (advantage === advantages[at - 1] ? [] : [[at, advantage] as const]));
}
