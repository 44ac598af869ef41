import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import pLimit from 'p-limit';
import { histogram } from '../environments/deep-research/benchmarks/statistics.ts';
import { stratified } from '../environments/deep-research/draw-tasks.ts';
import { type Demonstration, demonstrate } from '../environments/deep-research/expert.ts';
import type { Tokenizer } from '../environments/deep-research/prompt.ts';
import { messagesOf, writtenTrajectory } from '../environments/deep-research/trajectories/written-trajectory.ts';
import type { World } from '../environments/environment.ts';
import type { ArtifactRef, Metric, TrajectoriesBody } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import { nodeOf, type ResampleParameters, type TrajectoriesParameters } from '../schemas/node-parameters.ts';
import type { Task } from '../schemas/task.ts';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { trajectoryColumns, writeParquet } from './adapters/parquet.ts';
import { weightOf } from './import-tally.ts';
import { importTrajectories } from './import-trajectories.ts';
import type { CpuActivities, NodeRef } from './index.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { readTasks } from './task-files.ts';

export interface DemonstrationDeps {
  plans: PlanReader;
  store: ArtifactStore;
  worlds: { open(ref: NodeRef): Promise<World> };
  tokenizers: { load(model: string): Promise<Tokenizer> };
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
  /** Scratch space. */
  work: string;
}

type Shown = Extract<Demonstration, { status: 'ok' }> & { task: Task };

/** Searches of concurrent demonstrations travel to the index together. */
const CONCURRENT = 16;
const LENGTH_EDGES = [256, 512, 768, 1024, 1280, 1536, 2048, 4096, 8192];

export const createDemonstrationActivities = (deps: DemonstrationDeps): Pick<CpuActivities, 'demonstrations'> => ({
  /** What is imitated: a file's trajectories, or those of the scripted expert. The name is that of recorded histories. */
  demonstrations: (ref) =>
    withPulse(async (moved) => {
      const { parameters, seed, unkeyed } = nodeOf('trajectories', await deps.plans.node(ref));
      return parameters.source === 'import'
        ? importTrajectories(deps, ref, { parameters, seed, unkeyed }, moved)
        : makeDemonstrations(deps, ref, parameters, seed, moved);
    }),
});

/**
 * Let the scripted expert act out tasks until there are as many demonstrations as asked for. What it could not do
 * is dropped and counted; the next tasks of the same mix take the place.
 */
async function makeDemonstrations(
  { plans, store, worlds, tokenizers, progress, work }: DemonstrationDeps,
  ref: NodeRef,
  { agent, context_length, model, split, count, resample }: TrajectoriesParameters,
  seed: number | null,
  moved: () => void,
): Promise<ArtifactRef> {
  const pool = await tasksOfSplit(store, await plans.input(ref, 'tasks'), split);
  const wanted = Math.min(count ?? pool.length, pool.length);
  const queue = inMixOrder(pool, wanted, seed);
  const options = { tokenizer: await tokenizers.load(model.name), agent, context_length };
  const world = await worlds.open(ref);

  const shown: Shown[] = [];
  const dropped: Record<string, number> = {};
  const limit = pLimit(CONCURRENT);
  for (let from = 0; shown.length < wanted && from < queue.length; ) {
    const wave = queue.slice(from, from + wanted - shown.length);
    from += wave.length;
    const results = await Promise.all(
      wave.map((task) =>
        limit(async () => {
          const demonstration = await demonstrate(world, task, options);
          moved();
          return { task, demonstration };
        }),
      ),
    );
    for (const { task, demonstration } of results) {
      if (demonstration.status === 'ok') shown.push({ ...demonstration, task });
      else dropped[demonstration.reason] = (dropped[demonstration.reason] ?? 0) + 1;
    }
    await progress(ref.key, shown.length, wanted, `${shown.length} demonstrations, ${totalOf(dropped)} dropped`);
  }
  if (shown.length === 0) {
    throw new ExpError(
      'NO_DEMONSTRATIONS',
      ref.id,
      `the expert could act out none of ${queue.length} tasks: ${JSON.stringify(dropped)}`,
    );
  }
  return publish({ plans, store, work }, ref, shown, dropped, resample);
}

async function tasksOfSplit(
  store: ArtifactStore,
  manifest: Parameters<typeof readTasks>[1],
  split: string,
): Promise<Task[]> {
  const tasks: Task[] = [];
  for await (const task of readTasks(store, manifest)) if (task.split === split) tasks.push(task);
  if (tasks.length === 0) throw new ExpError('NO_TASKS', manifest.key, `no task is in the split ${split}`);
  return tasks;
}

/** The tasks asked for in their mix, then the rest of the split, in the same mix. */
function inMixOrder(pool: readonly Task[], wanted: number, seed: number | null): Task[] {
  const first = stratified(pool, wanted, seed);
  const taken = new Set(first.map(({ task_id }) => task_id));
  const rest = pool.filter(({ task_id }) => !taken.has(task_id));
  return rest.length === 0 ? first : [...first, ...stratified(rest, rest.length - 1, seed)];
}

async function publish(
  { plans, store, work }: Pick<DemonstrationDeps, 'plans' | 'store' | 'work'>,
  ref: NodeRef,
  shown: readonly Shown[],
  dropped: Record<string, number>,
  resample: ResampleParameters | null,
) {
  const rows = shown.flatMap((demonstration) => {
    const copies = weightOf(demonstration.turns.length, resample);
    return Array.from({ length: copies }, (_, copy) => trajectoryOf(ref.key, demonstration, copy));
  });
  const lengths = shown.map(({ rendered }) => rendered.token_ids.length);
  const tokens = rows.reduce((sum, { token_ids }) => sum + token_ids.length, 0);
  const trained = rows.reduce((sum, { mask }) => sum + mask.reduce((ones, bit) => ones + bit, 0), 0);
  const body: TrajectoriesBody = {
    trajectories: shown.length,
    instances: rows.length,
    tokens,
    masked_share: 1 - trained / Math.max(1, tokens),
    dropped,
  };
  const report = {
    ...body,
    turns: countBy(shown, ({ turns }) => String(turns.length)),
    capabilities: countBy(shown, ({ task }) => task.capability),
    tokens_histogram: histogram(lengths, LENGTH_EDGES),
  };

  await mkdir(work, { recursive: true });
  const folder = await mkdtemp(join(work, 'demonstrations-'));
  try {
    const files = {
      'trajectories.parquet': join(folder, 'trajectories.parquet'),
      'report.json': join(folder, 'report.json'),
      'samples.md': join(folder, 'samples.md'),
    };
    await writeParquet(files['trajectories.parquet'], rows, trajectoryColumns);
    await writeFile(files['report.json'], `${JSON.stringify(report, null, 2)}\n`);
    await writeFile(files['samples.md'], samplesOf(shown));
    return await store.publish({
      key: ref.key,
      kind: 'trajectories',
      inputs: await plans.lineage(ref),
      files,
      body,
      metrics: metricsOf(body, lengths),
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function trajectoryOf(key: string, { task, turns, rendered, answer }: Shown, copy: number): Trajectory {
  return writtenTrajectory({
    trajectory_id: `${key.slice(0, 12)}/${task.task_id}/${copy}`,
    task_id: task.task_id,
    sample: copy,
    checkpoint: 'expert',
    question: task.question,
    reference: task,
    isCorrect: true,
    answer,
    termination: 'answer',
    turns,
    rendered,
  });
}

/** One demonstration of each capability, to be read. */
function samplesOf(shown: readonly Shown[]): string {
  const first = new Map(shown.toReversed().map((demonstration) => [demonstration.task.capability, demonstration]));
  const texts = [...first.values()].map(({ task, turns }) => {
    const exchange = messagesOf(task.question, turns).map(
      ({ role, content }) => `**${role}**\n\n\`\`\`\n${content}\n\`\`\``,
    );
    return `## ${task.capability}: ${task.template ?? task.task_id}\n\n${exchange.join('\n\n')}`;
  });
  return `# Demonstrations\n\n${texts.join('\n\n')}\n`;
}

function metricsOf(body: TrajectoriesBody, lengths: readonly number[]): Metric[] {
  const timestamp_ms = Date.now();
  const values = {
    'demonstrations/kept': body.trajectories,
    'demonstrations/dropped': totalOf(body.dropped),
    'demonstrations/instances': body.instances,
    'demonstrations/tokens': body.tokens,
    'demonstrations/masked_share': body.masked_share,
    'demonstrations/longest_tokens': lengths.reduce((longest, length) => Math.max(longest, length), 0),
  };
  return Object.entries(values).map(([name, value]) => ({ name, step: 0, value, timestamp_ms }));
}

function totalOf(counts: Readonly<Record<string, number>>): number {
  return Object.values(counts).reduce((sum, times) => sum + times, 0);
}

function countBy<T>(items: readonly T[], nameOf: (item: T) => string): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const item of items) counts[nameOf(item)] = (counts[nameOf(item)] ?? 0) + 1;
  return counts;
}
