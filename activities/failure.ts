import { ApplicationFailure, CancelledFailure } from '@temporalio/activity';
import { ExpError } from '../schemas/errors.ts';
import { BudgetRefusal } from './budget.ts';

/** Codes of outages: the same call may succeed later. Every other ExpError is an answer and is not retried. */
const OUTAGES = new Set([
  'WORLD_UNAVAILABLE',
  'ENGINE_UNAVAILABLE',
  'TRAINER_LOST',
  'LEASE_LOST',
  'UNAVAILABLE',
  'INDEX_INCOMPLETE',
  'EMBEDDER_UNAVAILABLE',
  'JUDGE_UNAVAILABLE',
]);

/** The only place where our errors become Temporal's. */
export function toFailure(error: unknown): unknown {
  if (error instanceof CancelledFailure || !(error instanceof ExpError)) return error;
  return ApplicationFailure.create({
    type: error.code,
    message: error.message,
    nonRetryable: !OUTAGES.has(error.code),
    cause: error,
    // Nothing went wrong, and each run must learn what is its own.
    ...(error instanceof BudgetRefusal && { details: [error.refusals], category: 'BENIGN' as const }),
  });
}
