/** What a node would cost, from its parameters alone: upper bounds where the agent decides. */
import type { NodeOf } from '../schemas/node-parameters.ts';
import type { NodeKind, PlanNode } from '../schemas/plan.ts';

export interface Estimate {
  rollouts: number;
  /** At most: every trajectory as long as its context. */
  tokens_at_most: number;
  /** At most: a call in every turn. */
  tool_calls_at_most: number;
}

const NOTHING: Estimate = { rollouts: 0, tokens_at_most: 0, tool_calls_at_most: 0 };

/** Null where the spec does not say how much there is, such as all tasks of an imported file. */
export function estimateNode(node: PlanNode, nodes: readonly PlanNode[]): Estimate | null {
  switch (node.kind) {
    case 'profile': {
      const { parameters } = node as unknown as NodeOf<'profile'>;
      const tasks = parameters.tasks ?? tasksIn(parameters.split, nodes);
      return tasks === null ? null : sampled(tasks * parameters.rollouts, parameters);
    }
    case 'rl': {
      const { parameters } = node as unknown as NodeOf<'rl'>;
      const { rollout, until } = parameters;
      const tasks = tasksIn(parameters.tasks.split, nodes);
      const byEpochs =
        until.epochs === null || tasks === null ? null : Math.ceil((until.epochs * tasks) / rollout.prompts_per_step);
      const bounds = [until.steps, byEpochs].filter((bound) => bound !== null);
      return bounds.length === 0
        ? null
        : sampled(Math.min(...bounds) * rollout.prompts_per_step * rollout.group_size, parameters);
    }
    case 'benchmark': {
      const { parameters } = node as unknown as NodeOf<'benchmark'>;
      const questions = parameters.dataset.limit ?? tasksIn(parameters.dataset.split, nodes);
      if (questions === null) return null;
      const answered = sampled(questions * parameters.samples, parameters);
      return { ...answered, rollouts: answered.rollouts + questions }; // and once without tools: the closed-book baseline
    }
    case 'sft': {
      const { parameters, inputs } = node as unknown as NodeOf<'sft'>;
      const trajectories = nodes.find(({ id, kind }) => kind === 'trajectories' && inputs.includes(id)) as
        | NodeOf<'trajectories'>
        | undefined;
      const { count, resample } = trajectories?.parameters ?? { count: null, resample: null };
      if (count === null) return null;
      const copies = resample === null ? 1 : Math.max(...resample.bands.map(({ weight }) => weight));
      return { ...NOTHING, tokens_at_most: count * copies * parameters.optimizer.epochs * parameters.context_length };
    }
    default:
      return NOTHING;
  }
}

function sampled(
  rollouts: number,
  { context_length, agent }: { context_length: number; agent: { max_turns: number } },
): Estimate {
  return { rollouts, tokens_at_most: rollouts * context_length, tool_calls_at_most: rollouts * agent.max_turns };
}

/** Tasks of a split, when every source says how many it gives. */
function tasksIn(split: string, nodes: readonly PlanNode[]): number | null {
  const tasks = nodes.find(({ kind }) => kind === ('tasks' satisfies NodeKind)) as NodeOf<'tasks'> | undefined;
  if (tasks === undefined) return null;
  const { sources, splits, limit } = tasks.parameters;
  const counts = Object.values(sources).map((source) => (source.kind === 'generated' ? source.count : source.limit));
  const total = counts.includes(null)
    ? limit
    : Math.min(
        limit ?? Number.POSITIVE_INFINITY,
        counts.reduce<number>((sum, count) => sum + (count ?? 0), 0),
      );
  return total === null ? null : Math.round(total * (splits[split] ?? 0));
}
