import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import type { BeliefScope } from '../environments/deep-research/beliefs.ts';
import { ExpError } from '../schemas/errors.ts';
import {
  type AgentParameters,
  type NodeOf,
  nodeOf,
  type RewardParameters,
  type SamplingParameters,
} from '../schemas/node-parameters.ts';
import type { PlanNode } from '../schemas/plan.ts';
import type { Task } from '../schemas/task.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { CpuActivities, NodeRef } from './index.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';

/** Trajectories in one activity: enough to keep an engine full, few enough that a retry is cheap. */
const BATCH_SIZE = 32;

/** One line of a rollout request: everything a trajectory needs besides the weights and the world. */
export interface RolloutSpec {
  trajectory_id: string;
  task: Task;
  group_id: string;
  sample: number;
  seed: number;
  agent: AgentParameters;
  context_length: number;
  sampling: SamplingParameters;
  reward: RewardParameters;
  /** Beliefs in the reference answer to measure while rolling out. */
  beliefs?: BeliefScope;
}

interface Draw {
  tasks: Task[];
  samples: number;
  /** Also ask each question once without tools: the closed-book baseline. */
  closedBook: boolean;
  sampling: SamplingParameters;
}

export const createPrepareRolloutsActivities = ({ plans, store }: { plans: PlanReader; store: ArtifactStore }) => ({
  /** How many optimizer steps an rl stage has. */
  stagePlan: (ref: NodeRef) =>
    withPulse(async (moved) => {
      const node = nodeOf('rl', await plans.node(ref));
      const all = await readTasks(store, await plans.input(ref, 'tasks'), moved);
      const steps = stepsOf(node, (await trainingPool(plans, store, ref, node, all)).length);
      return { steps, ...(node.unkeyed.beliefs && { beliefs: node.unkeyed.beliefs }) };
    }),

  prepareRollouts: ({ node: ref, step, round }: Parameters<CpuActivities['prepareRollouts']>[0]) =>
    withPulse(async (moved) => {
      const node = await plans.node(ref);
      const all = await readTasks(store, await plans.input(ref, 'tasks'), moved);
      const draw = await drawTasks(plans, store, { ref, node, all }, step, round);
      const prefix = `${ref.key.slice(0, 12)}/${step}${round > 0 ? `.${round}` : ''}`;
      const specs = rolloutSpecs(node, draw, prefix);
      const lines = [{ batch_size: BATCH_SIZE }, ...specs].map((line) => JSON.stringify(line));
      const request = await store.putBlob(Buffer.from(`${lines.join('\n')}\n`));
      return { request, trajectories: specs.length, batches: Math.ceil(specs.length / BATCH_SIZE) };
    }),
});

function rolloutSpecs(node: PlanNode, draw: Draw, prefix: string): RolloutSpec[] {
  // The three kinds that sample have these in common.
  const { agent, context_length, reward } = (node as unknown as NodeOf<'profile' | 'benchmark' | 'rl'>).parameters;
  const beliefs = engineBeliefs(node);
  const spec = (task: Task, sample: number, group: string, tools: AgentParameters): RolloutSpec => {
    const trajectory_id = `${prefix}/${group}${task.task_id}/${sample}`;
    return {
      trajectory_id,
      task,
      group_id: `${group}${task.task_id}`,
      sample,
      seed: seedOf(node.seed, trajectory_id),
      agent: tools,
      context_length,
      sampling: draw.sampling,
      reward,
      ...(beliefs && { beliefs }),
    };
  };
  const specs = draw.tasks.flatMap((task) =>
    Array.from({ length: draw.samples }, (_, sample) => spec(task, sample, '', agent)),
  );
  if (!draw.closedBook) return specs;
  const closed = { ...agent, tools: [], max_turns: 1 };
  return [...specs, ...draw.tasks.map((task) => spec(task, 0, 'closed_book/', closed))];
}

function engineBeliefs(node: PlanNode): BeliefScope | null {
  if (node.kind !== 'rl') return null;
  const { parameters, unkeyed } = nodeOf('rl', node);
  const { igpo } = parameters.algorithm;
  return igpo !== null && unkeyed.beliefs === 'engine' ? { scope: igpo.scope, every: igpo.every } : null;
}

async function drawTasks(
  plans: PlanReader,
  store: ArtifactStore,
  { ref, node, all }: { ref: NodeRef; node: PlanNode; all: readonly Task[] },
  step: number,
  round: number,
): Promise<Draw> {
  switch (node.kind) {
    case 'profile': {
      const { tasks, split, rollouts, sampling } = nodeOf('profile', node).parameters;
      const chosen = stratified(inSplit(all, split), tasks ?? all.length, node.seed);
      return { tasks: chosen, samples: rollouts, closedBook: false, sampling };
    }
    case 'benchmark': {
      const { dataset, samples, sampling } = nodeOf('benchmark', node).parameters;
      const chosen = stratified(inSplit(all, dataset.split), dataset.limit ?? all.length, dataset.seed);
      return { tasks: chosen, samples, closedBook: true, sampling };
    }
    case 'rl': {
      const rl = nodeOf('rl', node);
      const { temperature, top_p, prompts_per_step, group_size } = rl.parameters.rollout;
      const pool = await trainingPool(plans, store, ref, rl, all);
      const start = (step - 1 + round * stepsOf(rl, pool.length)) * prompts_per_step;
      const chosen = promptsFrom(pool, start, prompts_per_step, node.seed);
      return { tasks: chosen, samples: group_size, closedBook: false, sampling: { temperature, top_p } };
    }
    default:
      throw new ExpError('PLAN', ref.id, `a node of kind ${node.kind} samples nothing`);
  }
}

const inSplit = (tasks: readonly Task[], split: string): Task[] => tasks.filter((task) => task.split === split);

/** Tasks a stage trains on: those its profile kept, or the whole split. */
async function trainingPool(
  plans: PlanReader,
  store: ArtifactStore,
  ref: NodeRef,
  node: NodeOf<'rl'>,
  all: readonly Task[],
): Promise<Task[]> {
  const profile = (await plans.inputs(ref)).find(({ kind }) => kind === 'profile');
  if (!profile) return inSplit(all, node.parameters.tasks.split);
  const kept = new Set<string>();
  for await (const line of linesOf(await store.openFile(profile.manifest, 'pass_rates.jsonl'))) {
    const row = JSON.parse(line) as { task_id: string; kept: boolean };
    if (row.kept) kept.add(row.task_id);
  }
  return all.filter((task) => kept.has(task.task_id));
}

/** Optimizer steps of a stage: as declared, or so many epochs over its training pool. */
export function stepsOf({ parameters: { until, rollout } }: NodeOf<'rl'>, poolSize: number): number {
  return until.steps ?? Math.ceil(((until.epochs ?? 1) * poolSize) / rollout.prompts_per_step);
}

/** `count` prompts from position `start` of an endless sequence of epochs, each epoch in its own seeded order. */
export function promptsFrom(pool: readonly Task[], start: number, count: number, seed: number | null): Task[] {
  if (pool.length === 0) return [];
  const wanted = Math.min(count, pool.length);
  const epoch = Math.floor(start / pool.length);
  // At most one epoch ends within them.
  const orders = [epoch, epoch + 1].flatMap((number) => seededOrder(pool, `${seed}:${number}`));
  return orders.slice(start % pool.length, (start % pool.length) + wanted);
}

/** `count` tasks in a seeded order, taking the capabilities in turn by their share, so that the mix is kept. */
export function stratified(tasks: readonly Task[], count: number, seed: number | null): Task[] {
  if (count >= tasks.length) return seededOrder(tasks, `${seed}`);
  const byCapability = new Map<string, Task[]>();
  for (const task of seededOrder(tasks, `${seed}`)) {
    byCapability.set(task.capability, [...(byCapability.get(task.capability) ?? []), task]);
  }
  const ranked = [...byCapability.values()].flatMap((group) =>
    group.map((task, position) => ({ task, rank: (position + 0.5) / group.length })),
  );
  ranked.sort((a, b) => a.rank - b.rank);
  return ranked.slice(0, count).map(({ task }) => task);
}

function seededOrder(tasks: readonly Task[], seed: string): Task[] {
  const rank = new Map(
    tasks.map(({ task_id }) => [task_id, createHash('sha256').update(`${seed}:${task_id}`).digest('hex')]),
  );
  return [...tasks].sort((a, b) => ((rank.get(a.task_id) as string) < (rank.get(b.task_id) as string) ? -1 : 1));
}

/** 31 bits from the node's seed and the trajectory's name, so that no two trajectories share a seed. */
function seedOf(seed: number | null, name: string): number {
  return createHash('sha256').update(`${seed}:${name}`).digest().readUInt32BE(0) >>> 1;
}

async function readTasks(
  store: ArtifactStore,
  manifest: Parameters<ArtifactStore['openFile']>[0],
  moved: () => void,
): Promise<Task[]> {
  const tasks: Task[] = [];
  for await (const line of linesOf(await store.openFile(manifest, 'tasks.jsonl'))) {
    tasks.push(JSON.parse(line) as Task);
    moved();
  }
  return tasks;
}

async function* linesOf(path: string): AsyncIterable<string> {
  for await (const line of createInterface({ input: createReadStream(path) })) if (line) yield line;
}
