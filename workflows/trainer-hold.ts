import {
  ActivityFailure,
  CancellationScope,
  condition,
  defineSignal,
  isCancellation,
  setHandler,
  TimeoutFailure,
  workflowInfo,
} from '@temporalio/workflow';
import type { NodeRef, TrainerActivities, TrainerHold } from '../activities/index.ts';
import { gpu, trainerOn } from './activity-proxies.ts';
import { always } from './cancellation.ts';

/** Sent by `holdTrainer` once a trainer process of this stage is up. */
export const trainerHeldSignal = defineSignal<[TrainerHold]>('trainer_held');

/** A stage's trainer: short activities on the host that holds the process. */
export interface HeldTrainer {
  activities: TrainerActivities;
  epoch: number;
}

/**
 * Take the GPU slot for a stage and work with its trainer. When the holding host is lost, a new hold is taken
 * elsewhere and `work` starts again: it must go on from the step ledger, not from local variables.
 */
export async function withTrainer<T>(node: NodeRef, work: (trainer: HeldTrainer) => Promise<T>): Promise<T> {
  const holds: TrainerHold[] = [];
  setHandler(trainerHeldSignal, (hold) => void holds.push(hold));
  for (;;) {
    const scope = new CancellationScope();
    const holding = scope.run(() => gpu().holdTrainer({ node, workflowId: workflowInfo().workflowId }));
    holding.catch(() => undefined); // looked at below; a rejection nobody awaits yet must not fail the task
    try {
      await Promise.race([condition(() => holds.length > 0), holding]);
      const hold = holds.at(-1) as TrainerHold;
      return await work({ activities: trainerOn(hold.taskQueue) as TrainerActivities, epoch: hold.epoch });
    } catch (error) {
      if (!isHostLost(error)) throw error;
    } finally {
      holds.length = 0;
      scope.cancel();
      await always(() => holding.catch(ignoreCancellation));
    }
  }
}

/** Nobody polls the host's own queue any more. */
function isHostLost(error: unknown): boolean {
  return (
    error instanceof ActivityFailure &&
    error.cause instanceof TimeoutFailure &&
    error.cause.timeoutType === 'SCHEDULE_TO_START'
  );
}

function ignoreCancellation(error: unknown): void {
  if (!isCancellation(error)) throw error;
}
