/** Telling a run something while it works: an update of one of its workflows, answered when it holds. */
import { ExpError } from '../schemas/errors.ts';
import type { Stack } from './open-stack.ts';
import { findRun, type RunRow } from './run-state.ts';

/** A worker that is busy answers late; one that is away does not answer. */
const ANSWER_MS = 15_000;

/** The run meant by `wanted`, if it has not ended. Throws RUN_ENDED. */
export async function findActiveRun(stack: Stack, wanted: string): Promise<RunRow> {
  const row = await findRun(stack.pool, wanted);
  if (row.status !== 'running') throw new ExpError('RUN_ENDED', row.id, `it has ended: ${row.status}`);
  return row;
}

/** Ask for a change, and wait for the workflow's answer. Throws what it refuses, RUN_ENDED, SERVICE_UNREACHABLE. */
export async function updateWorkflow<Answer>(
  stack: Stack,
  { row, workflowId, update, input = {} }: { row: RunRow; workflowId: string; update: string; input?: object },
): Promise<Answer> {
  const { WorkflowNotFoundError, WorkflowUpdateFailedError, WorkflowUpdateRPCTimeoutOrCancelledError } = await import(
    '@temporalio/client'
  );
  const client = await stack.temporal();
  try {
    return await client.connection.withDeadline(Date.now() + ANSWER_MS, () =>
      client.workflow.getHandle(workflowId).executeUpdate<Answer, [object]>(update, { args: [input] }),
    );
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) throw new ExpError('RUN_ENDED', row.id, 'its workflow is not open');
    if (error instanceof WorkflowUpdateFailedError) {
      const { type, message } = (error.cause ?? error) as Error & { type?: string | null };
      throw new ExpError(type ?? 'RUN_REFUSED', row.id, message, { cause: error });
    }
    if (error instanceof WorkflowUpdateRPCTimeoutOrCancelledError)
      throw new ExpError(
        'SERVICE_UNREACHABLE',
        row.id,
        'no worker answers; `exp status` tells whether it took, `exp doctor` what is wrong',
        {
          cause: error,
        },
      );
    throw error;
  }
}
