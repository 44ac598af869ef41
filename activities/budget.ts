/** Amounts, prices and bounds. Pure. */
import { ExpError } from '../schemas/errors.ts';
import type { Experiment } from '../schemas/experiment.ts';
import type { Profile } from '../schemas/profile.ts';
import type { Refusal } from './adapters/spend-ledger.ts';

export interface Amounts {
  /** Sampled tokens. */
  tokens: number;
  /** Calls of search and visit. */
  tool_calls: number;
  gpu_hours: number;
  cpu_hours: number;
}

export const NOTHING: Amounts = { tokens: 0, tool_calls: 0, gpu_hours: 0, cpu_hours: 0 };

export type Bounds = Omit<NonNullable<Experiment['budget']>, 'on_exceed'>;

/** In the order in which a bound is reported. */
export const BOUNDED = ['tokens', 'tool_calls', 'gpu_hours', 'money'] as const satisfies readonly (keyof Bounds)[];

export interface Standing {
  spent: Amounts;
  /** At most, by work in flight. */
  reserved: Amounts;
}

/** All that wait for a node are at their bounds. */
export class BudgetRefusal extends ExpError {
  readonly refusals: readonly Refusal[];

  constructor(at: string, refusals: readonly Refusal[]) {
    super('BUDGET', at, refusals.map(({ reason }) => reason).join('; '));
    this.refusals = refusals;
  }
}

export function sumOf(a: Amounts, b: Amounts): Amounts {
  return {
    tokens: a.tokens + b.tokens,
    tool_calls: a.tool_calls + b.tool_calls,
    gpu_hours: a.gpu_hours + b.gpu_hours,
    cpu_hours: a.cpu_hours + b.cpu_hours,
  };
}

/** In the currency of the profile. */
export function moneyOf({ tokens, tool_calls, gpu_hours, cpu_hours }: Amounts, prices: Profile['prices']): number {
  return (
    (tokens / 1e6) * prices.million_tokens +
    (tool_calls / 1e3) * prices.thousand_tool_calls +
    gpu_hours * prices.gpu_hour +
    cpu_hours * prices.cpu_hour
  );
}

/**
 * The first bound that `most` more would pass, in words; null when there is room. Time has no upper bound before it
 * has passed, so GPU-hours and money stop at the bound and not before it: they may pass it by one step.
 */
export function overBound(used: Amounts, most: Amounts, bounds: Bounds, prices: Profile['prices']): string | null {
  const priced = (amounts: Amounts) => ({ ...amounts, money: moneyOf(amounts, prices) });
  const [now, more] = [priced(used), priced(most)];
  for (const name of BOUNDED) {
    const bound = bounds[name];
    if (bound === undefined) continue;
    const isTime = name === 'gpu_hours' || name === 'money';
    const isOver = now[name] + more[name] > bound || (isTime && now[name] > 0 && now[name] >= bound);
    if (isOver)
      return `${name} ${shown(now[name])} of ${bound}${more[name] > 0 ? `, the next batch may take ${shown(more[name])}` : ''}`;
  }
  return null;
}

const shown = (amount: number): string => String(Number(amount.toFixed(4)));

/** The most that trajectories may take, whatever the policy does. */
export function mostOf(
  specs: readonly {
    context_length: number;
    agent: { tools: readonly string[]; max_turns: number; max_turn_tokens: number; context_management: string };
  }[],
): Amounts {
  const most = { ...NOTHING };
  for (const { context_length, agent } of specs) {
    // The forced answer is a turn of its own.
    const sampled = (agent.max_turns + 1) * agent.max_turn_tokens;
    most.tokens += agent.context_management === 'none' ? Math.min(context_length, sampled) : sampled;
    if (agent.tools.length > 0) most.tool_calls += agent.max_turns;
  }
  return most;
}
