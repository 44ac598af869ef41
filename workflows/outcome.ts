import { ActivityFailure, ApplicationFailure, ChildWorkflowFailure, isCancellation } from '@temporalio/workflow';
import type { NodeEnding, Refusal } from '../activities/index.ts';
import { PAUSED, UNHEALTHY } from './pausing.ts';

export type RunStatus = 'running' | 'done' | 'failed' | 'cancelled' | 'gate_failed' | 'budget';
export type ArmStatus = RunStatus | 'waiting';

const SEVERITY: readonly ArmStatus[] = ['done', 'waiting', 'running', 'gate_failed', 'budget', 'failed', 'cancelled'];

/** The status of a whole from the statuses of its parts. */
export function worstOf(statuses: readonly ArmStatus[]): RunStatus {
  const worst = statuses.reduce<ArmStatus>((a, b) => (SEVERITY.indexOf(b) > SEVERITY.indexOf(a) ? b : a), 'done');
  return worst === 'waiting' ? 'cancelled' : worst;
}

/** Codes that mean: the experiment's own bar was not met. Exit 3, not a failure of the machinery. */
const GATE_CODES = new Set(['TOO_FEW_SOLVABLE', 'CONTAMINATED']);

/** How a node ended, from what was thrown. */
export function outcomeOfError(node: { id: string; key: string }, error: unknown): NodeEnding {
  const { id, key } = node;
  if (isCancellation(error)) return { id, key, status: 'cancelled' };
  const cause = rootCause(error);
  const code = (cause instanceof ApplicationFailure && cause.type) || 'INTERNAL';
  if (code === 'BUDGET' && cause instanceof ApplicationFailure) {
    const [refusals] = cause.details as [Refusal[]];
    return { id, key, status: 'paused', refusals };
  }
  if (code === PAUSED) return { id, key, status: 'paused' };
  if (code === UNHEALTHY) return { id, key, status: 'paused', unhealthy: cause.message };
  return { id, key, status: GATE_CODES.has(code) ? 'gate_failed' : 'failed', error: { code, message: cause.message } };
}

function rootCause(error: unknown): Error {
  let current = error instanceof Error ? error : new Error(String(error));
  while ((current instanceof ActivityFailure || current instanceof ChildWorkflowFailure) && current.cause) {
    current = current.cause;
  }
  return current;
}
