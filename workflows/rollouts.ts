import { isCancellation, workflowInfo } from '@temporalio/workflow';
import type { RolloutRequest, RolloutShard, SamplingRequest } from '../activities/index.ts';
import { cpu, rollout } from './activity-proxies.ts';
import { always } from './cancellation.ts';
import { type Hold, listenForPause, stopIfPaused } from './pausing.ts';

/** Batches in flight at a time: two, so that the engine has work while one batch's stragglers finish. */
const WINDOW = 2;

/**
 * Sample all trajectories of one request from an engine leased at one checkpoint. A request that says so is followed by
 * another round, of what the rounds before have not decided.
 */
export async function rollouts(asked: SamplingRequest): Promise<RolloutShard[]> {
  const hold = listenForPause();
  const { checkpoint } = asked;
  let request = await cpu.prepareRollouts(asked);
  if (request.batches === 0) return [];
  const holder = workflowInfo().workflowId;
  await rollout().acquireEngine({ checkpoint, holder });
  try {
    const shards: RolloutShard[] = [];
    for (let round = asked.round; ; ) {
      shards.push(...(await sampleBatches(asked, request, hold)));
      if (!request.more) return shards;
      round += 1;
      request = await cpu.prepareRollouts({ ...asked, round, shards });
    }
  } finally {
    await always(() => rollout().releaseEngine({ holder }));
  }
}

/** The batches of one request, in a sliding window. */
async function sampleBatches(
  { node, step, checkpoint }: SamplingRequest,
  { request, batches }: RolloutRequest,
  hold: Hold,
): Promise<RolloutShard[]> {
  const holder = workflowInfo().workflowId;
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
}
