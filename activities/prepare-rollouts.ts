import type { BeliefScope } from '../environments/deep-research/beliefs.ts';
import { type Block, promptsFrom, refillFrom, seedOf, stratified } from '../environments/deep-research/draw-tasks.ts';
import { filters } from '../environments/deep-research/pass-rates.ts';
import { ExpError } from '../schemas/errors.ts';
import {
  type AgentParameters,
  type BenchmarkParameters,
  type NodeOf,
  nodeOf,
  type ProfileParameters,
  type RewardParameters,
  type SamplingParameters,
} from '../schemas/node-parameters.ts';
import type { PlanNode } from '../schemas/plan.ts';
import type { Task } from '../schemas/task.ts';
import type { CpuActivities, NodeRef, RolloutShard, StageActivities } from './index.ts';
import { drawsOf, readByTask, rolloutOf } from './measure-pass-rates.ts';
import { withPulse } from './pulse.ts';
import { listShards } from './read-shards.ts';
import { readTasks } from './task-files.ts';
import { type PoolSources, trainingPool } from './training-pool.ts';

/** Trajectories in one activity: enough to keep an engine full, few enough that a retry is cheap. */
const BATCH_SIZE = 32;
/** Trajectories in one request: few enough for one history, and for each batch to read the file of their specs. */
const PART_SIZE = 16_384;
/** Steps of a stage that only a plateau ends. */
const NO_END = 10_000_000;

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
  /** Part of the batch after which the rest is asked for answers; null for never. */
  cutoff: number | null;
}

/** First line of a rollout request. */
export interface RequestHeader {
  batch_size: number;
  /** Of a part: trajectories in the parts before it, and in all. */
  before?: number;
  total?: number;
}

type Request = Parameters<CpuActivities['prepareRollouts']>[0];

/** How trajectories are sampled, whatever the kind of the node. */
type Manner = Pick<RolloutSpec, 'agent' | 'context_length' | 'sampling' | 'reward' | 'cutoff' | 'beliefs'>;

interface Draw {
  /** Samples of each task, from the first that is not sampled yet. */
  draws: { task: Task; first: number; count: number }[];
  manner: Manner;
  /** Names trajectories: the same sample has the same name, and so the same seed, in whichever round it is drawn. */
  prefix: string;
  /** Also ask each question once without tools: the closed-book baseline. */
  closedBook?: boolean;
  /** What this round finds decides what another samples. */
  more?: boolean;
}

export const createPrepareRolloutsActivities = ({
  partSize = PART_SIZE,
  ...deps
}: PoolSources & { partSize?: number }): Pick<CpuActivities, 'prepareRollouts' | 'listShards'> &
  Pick<StageActivities, 'stagePlan'> => ({
  /** How many optimizer steps an rl stage has, and whether more than their number decides its course. */
  stagePlan: (ref) =>
    withPulse(async (moved) => {
      const node = nodeOf('rl', await deps.plans.node(ref));
      const { tasks } = await trainingPool(deps, ref, node, await tasksOf(deps, ref, moved), 0);
      const { evaluate, health, refresh_every, until, rollout } = node.parameters;
      const { beliefs } = node.unkeyed;
      return {
        backend: node.parameters.backend.name,
        ...stepsOf(node, tasks.length),
        refills: rollout.refills,
        looks: Boolean(evaluate || health || refresh_every || until.plateau || rollout.max_staleness),
        ...(beliefs && { beliefs }),
      };
    }),

  prepareRollouts: (request) =>
    withPulse(async (moved) => {
      const node = await deps.plans.node(request.node);
      const draw = await drawOf(deps, request, node, moved);
      const all = attemptsOf(draw);
      const before = (request.part?.number ?? 0) * partSize;
      const specs = all.slice(before, before + partSize).map((attempt) => rolloutSpec(node, draw, attempt));
      const isPart = specs.length < all.length;
      const header: RequestHeader = { batch_size: BATCH_SIZE, ...(isPart && { before, total: all.length }) };
      const lines = [header, ...specs].map((line) => JSON.stringify(line));
      const blob = await deps.store.putBlob(Buffer.from(`${lines.join('\n')}\n`));
      return {
        request: blob,
        trajectories: specs.length,
        batches: Math.ceil(specs.length / BATCH_SIZE),
        more: draw.more ?? false,
        ...(before + specs.length < all.length && { followed: true }),
      };
    }),

  listShards: ({ shards }) => listShards(deps.store, shards),
});

interface Attempt {
  task: Task;
  sample: number;
  closedBook: boolean;
}

/** All that is sampled, in order; small, since a request may have hundreds of thousands. */
function attemptsOf({ draws, closedBook }: Draw): Attempt[] {
  const attempts = draws.flatMap(({ task, first, count }) =>
    Array.from({ length: count }, (_, index) => ({ task, sample: first + index, closedBook: false })),
  );
  return closedBook ? [...attempts, ...draws.map(({ task }) => ({ task, sample: 0, closedBook: true }))] : attempts;
}

function rolloutSpec(node: PlanNode, { manner, prefix }: Draw, { task, sample, closedBook }: Attempt): RolloutSpec {
  const group_id = `${closedBook ? 'closed_book/' : ''}${task.task_id}`;
  const trajectory_id = `${prefix}/${group_id}/${sample}`;
  const seed = seedOf(node.seed, trajectory_id);
  const agent = closedBook ? { ...manner.agent, tools: [], max_turns: 1 } : manner.agent;
  return { trajectory_id, task, group_id, sample, seed, ...manner, agent };
}

function engineBeliefs({ parameters, unkeyed }: NodeOf<'rl'>): BeliefScope | null {
  const { igpo } = parameters.algorithm;
  return igpo !== null && unkeyed.beliefs === 'engine' ? { scope: igpo.scope, every: igpo.every } : null;
}

async function drawOf(deps: PoolSources, request: Request, node: PlanNode, moved: () => void): Promise<Draw> {
  const { node: ref, step, round, purpose } = request;
  const name = `${ref.key.slice(0, 12)}/${step}`;
  switch (node.kind) {
    case 'profile': {
      const all = await tasksOf(deps, ref, moved);
      return { ...(await profileDraw(deps, nodeOf('profile', node), all, request, moved)), prefix: name };
    }
    case 'benchmark': {
      const { parameters } = nodeOf('benchmark', node);
      return { ...benchmarkDraw(parameters, await tasksOf(deps, ref, moved)), prefix: name, closedBook: true };
    }
    case 'rl': {
      const rl = nodeOf('rl', node);
      if (purpose === 'evaluation') {
        const { questions, protocol } = rl.parameters.evaluate as NonNullable<typeof rl.parameters.evaluate>;
        return { ...benchmarkDraw(protocol, await tasksOf(deps, ref, moved, questions)), prefix: `${name}.eval` };
      }
      const all = await tasksOf(deps, ref, moved);
      if (purpose === 'refresh') {
        const profile = await profileOf(deps, ref);
        return { ...(await profileDraw(deps, profile, all, request, moved)), prefix: `${name}.refresh` };
      }
      return { ...(await stepDraw(deps, request, rl, all)), prefix: round > 0 ? `${name}.${round}` : name };
    }
    default:
      throw new ExpError('PLAN', ref.id, `a node of kind ${node.kind} samples nothing`);
  }
}

const samplesOf = (tasks: readonly Task[], count: number): Draw['draws'] =>
  tasks.map((task) => ({ task, first: 0, count }));

function benchmarkDraw(
  { dataset, samples, agent, context_length, sampling, reward }: Omit<BenchmarkParameters, 'benchmark' | 'after'>,
  questions: readonly Task[],
): Pick<Draw, 'draws' | 'manner'> {
  const chosen = stratified(inSplit(questions, dataset.split), dataset.limit ?? questions.length, dataset.seed);
  return { draws: samplesOf(chosen, samples), manner: { agent, context_length, sampling, reward, cutoff: null } };
}

/** A round of a profile: tasks whose side is decided by what the rounds before found are sampled no further. */
async function profileDraw(
  { store }: PoolSources,
  { parameters, seed }: { parameters: ProfileParameters; seed: number | null },
  tasks: readonly Task[],
  { shards = [], round }: { shards?: RolloutShard[]; round: number },
  moved: () => void,
): Promise<Pick<Draw, 'draws' | 'manner' | 'more'>> {
  const { split, rollouts: total, keep, stop_decided, agent, context_length, sampling, reward } = parameters;
  const profiled = stratified(inSplit(tasks, split), parameters.tasks ?? tasks.length, seed);
  const found = await readByTask(store, shards, rolloutOf, moved);
  const draws = profiled.flatMap((task) => {
    const sampled = found.get(task.task_id) ?? [];
    const count = drawsOf(sampled, parameters, round);
    return count === 0 ? [] : [{ task, first: sampled.length, count }];
  });
  const more = stop_decided && filters(keep, total) && draws.some(({ first, count }) => first + count < total);
  return { draws, more, manner: { agent, context_length, sampling, reward, cutoff: null } };
}

async function stepDraw(
  deps: PoolSources,
  { node: ref, step, refill }: Request,
  node: NodeOf<'rl'>,
  tasks: readonly Task[],
): Promise<Pick<Draw, 'draws' | 'manner'>> {
  const { rollout, agent, context_length, reward } = node.parameters;
  const { temperature, top_p, prompts_per_step, group_size, cutoff } = rollout;
  const pool = await trainingPool(deps, ref, node, tasks, step);
  const block: Block = { start: (step - 1 - pool.since) * prompts_per_step, count: prompts_per_step };
  const seed = pool.since === 0 ? `${node.seed}` : `${node.seed}:${pool.since}`;
  const chosen = refill ? refillFrom(pool.tasks, block, refill, { seed, step }) : promptsFrom(pool.tasks, block, seed);
  const beliefs = engineBeliefs(node);
  const manner = {
    agent,
    context_length,
    reward,
    sampling: { temperature, top_p },
    cutoff,
    ...(beliefs && { beliefs }),
  };
  return { draws: samplesOf(chosen, group_size), manner };
}

const inSplit = (tasks: readonly Task[], split: string): Task[] => tasks.filter((task) => task.split === split);

/** The profile that a stage measures again by. */
export async function profileOf({ plans }: PoolSources, ref: NodeRef): Promise<NodeOf<'profile'>> {
  const { inputs } = await plans.node(ref);
  const found = (await plans.nodes(ref)).find(({ id, kind }) => kind === 'profile' && inputs.includes(id));
  if (!found) throw new ExpError('PLAN', ref.id, 'measures pass rates again and has no profile');
  return nodeOf('profile', found);
}

/** Optimizer steps of a stage: the first of those declared, and of so many epochs over the pool it begins with. */
export function stepsOf(
  { parameters: { until, rollout } }: NodeOf<'rl'>,
  poolSize: number,
): { steps: number; ends: 'steps' | 'epochs' } {
  const byEpochs = until.epochs === null ? NO_END : Math.ceil((until.epochs * poolSize) / rollout.prompts_per_step);
  const declared = until.steps ?? NO_END;
  return byEpochs < declared ? { steps: byEpochs, ends: 'epochs' } : { steps: declared, ends: 'steps' };
}

/** Tasks of the input `id`, or of the first that holds tasks. */
async function tasksOf({ plans, store }: PoolSources, ref: NodeRef, moved: () => void, id?: string): Promise<Task[]> {
  const found = (await plans.inputs(ref)).find((input) =>
    id === undefined ? input.kind === 'tasks' : input.id === id,
  );
  if (!found) throw new ExpError('PLAN', ref.id, `has no input ${id ?? 'of kind tasks'}`);
  const tasks: Task[] = [];
  for await (const task of readTasks(store, found.manifest)) {
    tasks.push(task);
    moved();
  }
  return tasks;
}
