import { isCancellation, workflowInfo } from '@temporalio/workflow';
import type { NodeRef, RolloutShard } from '../activities/index.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import { cpu, rollout } from './activity-proxies.ts';
import { always } from './cancellation.ts';
import { listenForPause, stopIfPaused } from './pausing.ts';

export interface RolloutsInput {
  node: NodeRef;
  step: number;
  /** Counts refills of the same step. */
  round: number;
  checkpoint: Checkpoint;
}

/** Batches in flight at a time: two, so that the engine has work while one batch's stragglers finish. */
const WINDOW = 2;

/** Sample all trajectories of one request from an engine leased at one checkpoint, in a sliding window of batches. */
export async function rollouts({ node, step, round, checkpoint }: RolloutsInput): Promise<RolloutShard[]> {
  const hold = listenForPause();
  const { request, batches } = await cpu.prepareRollouts({ node, step, round, checkpoint });
  const holder = workflowInfo().workflowId;
  await rollout().acquireEngine({ checkpoint, holder });
  try {
    const shards: RolloutShard[] = [];
    let next = 0;
    const lane = async () => {
      for (let batch = next++; batch < batches; batch = next++) {
        stopIfPaused(hold);
        shards[batch] = await rollout().rolloutBatch({ node, step, request, batch, checkpoint, holder });
      }
    };
    const lanes = await Promise.allSettled(Array.from({ length: Math.min(WINDOW, batches) }, lane));
    const failed =
      lanes.find((outcome) => outcome.status === 'rejected' && !isCancellation(outcome.reason)) ??
      lanes.find((outcome) => outcome.status === 'rejected');
    if (failed) throw (failed as PromiseRejectedResult).reason;
    return shards;
  } finally {
    await always(() => rollout().releaseEngine({ holder }));
  }
}
