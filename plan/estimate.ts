/** What a node would cost, from its parameters alone: upper bounds where the agent decides. */
import type { AgentParameters, NodeOf, Unkeyed } from '../schemas/node-parameters.ts';
import type { NodeKind, PlanNode } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';

export interface Estimate {
  /** At most: those of every refill, and none that a decided task is spared. */
  rollouts: number;
  /** Sampled, at most: every trajectory as long as its context. */
  tokens_at_most: number;
  /** Trained on, at most. */
  trained_tokens_at_most: number;
  /** At most: a call in every turn. */
  tool_calls_at_most: number;
}

export interface Cost {
  /** At most, by the profile's throughput; null where the profile does not state one. */
  gpu_hours_at_most: number | null;
  /** In the currency of the profile's prices. */
  cost_at_most: number | null;
}

const NOTHING: Estimate = { rollouts: 0, tokens_at_most: 0, trained_tokens_at_most: 0, tool_calls_at_most: 0 };

/** What an estimate costs where it runs. Hours of processors are not estimated, only those of GPUs. */
export function priceOf(estimate: Estimate, { prices, throughput, capabilities }: Profile): Cost {
  const gpuHours =
    capabilities.gpus === 0
      ? 0
      : throughput === undefined
        ? null
        : (estimate.tokens_at_most / throughput.sampled_tokens_per_gpu_second +
            estimate.trained_tokens_at_most / throughput.trained_tokens_per_gpu_second) /
          3600;
  const byUse =
    (estimate.tokens_at_most / 1e6) * prices.million_tokens +
    (estimate.tool_calls_at_most / 1e3) * prices.thousand_tool_calls;
  return {
    gpu_hours_at_most: gpuHours,
    cost_at_most: gpuHours === null ? null : gpuHours * prices.gpu_hour + byUse,
  };
}

/** The sum of what is known, and how many are not. */
export function totalOf(estimates: readonly (Estimate | null)[]): Estimate & { unknown: number } {
  const known = estimates.filter((estimate) => estimate !== null);
  const sum = (field: keyof Estimate): number => known.reduce((total, estimate) => total + estimate[field], 0);
  return {
    rollouts: sum('rollouts'),
    tokens_at_most: sum('tokens_at_most'),
    trained_tokens_at_most: sum('trained_tokens_at_most'),
    tool_calls_at_most: sum('tool_calls_at_most'),
    unknown: estimates.length - known.length,
  };
}

/** Null where the spec does not say how much there is, such as all tasks of an imported file. */
export function estimateNode(node: PlanNode, nodes: readonly PlanNode[]): Estimate | null {
  if ((node.unkeyed as Unkeyed).reused_from !== undefined) return NOTHING;
  switch (node.kind) {
    case 'profile': {
      const { parameters } = node as unknown as NodeOf<'profile'>;
      const tasks = parameters.tasks ?? tasksIn(parameters.split, node, nodes);
      return tasks === null ? null : sampled(tasks * parameters.rollouts, parameters);
    }
    case 'rl':
      return estimateRl(node as unknown as NodeOf<'rl'>, node, nodes);
    case 'benchmark': {
      const { parameters } = node as unknown as NodeOf<'benchmark'>;
      const questions = parameters.dataset.limit ?? tasksIn(parameters.dataset.split, node, nodes);
      if (questions === null) return null;
      const answered = sampled(questions * parameters.samples, parameters);
      return { ...answered, rollouts: answered.rollouts + questions }; // and once without tools: the closed-book baseline
    }
    case 'sft': {
      const { parameters, inputs } = node as unknown as NodeOf<'sft'>;
      const trajectories = nodes.find(({ id, kind }) => kind === 'trajectories' && inputs.includes(id)) as
        | NodeOf<'trajectories'>
        | undefined;
      const { count: wanted, resample } = trajectories?.parameters ?? { count: null, resample: null };
      const count = wanted ?? trajectories?.unkeyed.expect?.['trajectories'] ?? null;
      if (count === null) return null;
      const copies = resample === null ? 1 : Math.max(...resample.bands.map(({ weight }) => weight));
      return {
        ...NOTHING,
        trained_tokens_at_most: count * copies * parameters.optimizer.epochs * parameters.context_length,
      };
    }
    default:
      return NOTHING;
  }
}

/** Every step with all its refills, and what the stage measures of itself on the way. */
function estimateRl({ parameters }: NodeOf<'rl'>, node: PlanNode, nodes: readonly PlanNode[]): Estimate | null {
  const { rollout, until, evaluate, refresh_every } = parameters;
  const tasks = tasksIn(parameters.tasks.split, node, nodes);
  const byEpochs =
    until.epochs === null || tasks === null ? null : Math.ceil((until.epochs * tasks) / rollout.prompts_per_step);
  const bounds = [until.steps, byEpochs].filter((bound) => bound !== null);
  if (bounds.length === 0) return null;
  const steps = Math.min(...bounds);
  const batch = rollout.prompts_per_step * rollout.group_size;
  const parts = [sampled(steps * (1 + rollout.refills) * batch, parameters)];
  if (evaluate !== null) {
    const { dataset, samples } = evaluate.protocol;
    const questions = dataset.limit ?? tasksIn(dataset.split, { ...node, inputs: [evaluate.questions] }, nodes);
    if (questions === null) return null;
    parts.push(sampled(Math.floor(steps / evaluate.every) * questions * samples, evaluate.protocol));
  }
  if (refresh_every !== null) {
    const profile = nodes.find(({ id, kind }) => kind === 'profile' && node.inputs.includes(id));
    const once = profile ? estimateNode(profile, nodes) : null;
    if (once === null) return null;
    const times = Math.floor((steps - 1) / refresh_every); // not after the last step
    parts.push(...Array.from({ length: times }, () => once));
  }
  const { unknown: _, ...sum } = totalOf(parts);
  return { ...sum, trained_tokens_at_most: steps * batch * parameters.context_length };
}

/** With a managed context a trajectory is longer than one context; what later branches repeat is counted once. */
function sampled(
  rollouts: number,
  {
    context_length,
    agent: { max_turns, max_turn_tokens, observation_tokens, context_management },
  }: { context_length: number; agent: AgentParameters },
): Estimate {
  const later = context_management === 'none' ? 0 : (max_turns + 1) * (max_turn_tokens + observation_tokens);
  return {
    ...NOTHING,
    rollouts,
    tokens_at_most: rollouts * (context_length + later),
    tool_calls_at_most: rollouts * max_turns,
  };
}

/** Tasks of a split, when every source says how many it gives: by its limit, or by what it must have. */
function tasksIn(split: string, { inputs }: PlanNode, nodes: readonly PlanNode[]): number | null {
  const read = inputs.map((input) => nodes.find(({ id }) => id === input));
  // What is trained on comes before what a stage is evaluated on.
  const tasks = read.find((input) => input?.kind === ('tasks' satisfies NodeKind)) as NodeOf<'tasks'> | undefined;
  if (tasks === undefined) return null;
  const { sources, splits, limit } = tasks.parameters;
  const counts = Object.entries(sources).map(([name, source]) =>
    source.kind === 'generated' ? source.count : (source.limit ?? tasks.unkeyed.expect?.[name] ?? null),
  );
  const total = counts.includes(null)
    ? limit
    : Math.min(
        limit ?? Number.POSITIVE_INFINITY,
        counts.reduce<number>((sum, count) => sum + (count ?? 0), 0),
      );
  return total === null ? null : Math.round(total * (splits[split] ?? 0));
}
