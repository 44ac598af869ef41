/** What trajectories used, summed while they pass by. */
import type { Span } from '../../schemas/trajectory.ts';
import { OUTCOMES, type Outcome, type Usage } from './document.ts';
import { type GradedRow, outcomeOf } from './show-trajectory.ts';

const BINS = 20;

export interface Totals {
  trajectories: number;
  tokens: number;
  action_tokens: number;
  tool_calls: number;
}

const byOutcome = <T>(make: () => T): Record<Outcome, T> =>
  Object.fromEntries(OUTCOMES.map((outcome) => [outcome, make()])) as Record<Outcome, T>;

/** Each once: what a later branch repeats is its prompt. */
export const tokensOf = ({ branch, spans }: Pick<GradedRow, 'branch' | 'spans'>): number =>
  spans.reduce((sum, { kind, start, end }) => sum + (branch > 0 && kind === 'prompt' ? 0 : end - start), 0);
/** A summary is no call of a tool, and neither is an answer. */
const isCall = ({ tool }: Span): boolean => tool !== null && tool !== 'answer' && tool !== 'summary';
export const actionsOf = ({ spans }: Pick<GradedRow, 'spans'>): Span[] => spans.filter(({ kind }) => kind === 'action');

export class Tally {
  readonly totals: Totals = { trajectories: 0, tokens: 0, action_tokens: 0, tool_calls: 0 };
  readonly usage: Usage;

  constructor(node: string, contextLength: number) {
    this.usage = {
      node,
      context_length: contextLength,
      outcomes: byOutcome(() => 0),
      context: byOutcome(() => Array.from({ length: BINS }, () => 0)),
      actions: byOutcome(() => ({})),
      terminations: {},
    };
  }

  /**
   * Samples without tools cost as others do, but say nothing of how tools are used. A trajectory counts with its first
   * branch; tokens and actions count with the branch they are in.
   */
  add(row: GradedRow, { hadTools }: { hadTools: boolean }): void {
    const actions = actionsOf(row);
    if (row.branch === 0) this.totals.trajectories += 1;
    this.totals.tokens += tokensOf(row);
    this.totals.action_tokens += actions.reduce((sum, { start, end }) => sum + end - start, 0);
    this.totals.tool_calls += actions.filter(isCall).length;
    if (hadTools) this.#use(row, actions);
  }

  #use(row: GradedRow, actions: readonly Span[]): void {
    const outcome = outcomeOf(row);
    const { outcomes, context, actions: called, terminations, context_length } = this.usage;
    if (row.branch === 0) {
      outcomes[outcome] += 1;
      terminations[row.termination] = (terminations[row.termination] ?? 0) + 1;
      const bin = Math.min(BINS - 1, Math.floor((BINS * tokensOf(row)) / context_length));
      (context[outcome][bin] as number) += 1;
    }
    for (const { tool } of actions) {
      const name = tool ?? 'malformed';
      called[outcome][name] = (called[outcome][name] ?? 0) + 1;
    }
  }
}
