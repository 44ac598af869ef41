import { continueAsNew, isCancellation, workflowInfo } from '@temporalio/workflow';
import type { RolloutRequest, RolloutShard, SamplingRequest } from '../activities/index.ts';
import { cpu, rollout } from './activity-proxies.ts';
import { always } from './cancellation.ts';
import { type Hold, listenForPause, stopIfPaused } from './pausing.ts';

/** Batches in flight at a time: two, so that the engine has work while one batch's stragglers finish. */
const WINDOW = 2;

/** A sampling request, and whether the pause that the execution before this one had heard of still lasts. */
export type RolloutsInput = SamplingRequest & { paused?: boolean };

/**
 * Sample all trajectories of one request from an engine leased at one checkpoint. A request that says so is followed by
 * another round, of what the rounds before have not decided. What is too large for one history is sampled in parts, each
 * an execution of its own.
 */
export async function rollouts({ paused, ...asked }: RolloutsInput): Promise<RolloutShard[]> {
  const hold = listenForPause(paused);
  const { shards = [], next } = await sampleRounds(asked, hold);
  return next ? continueAsNew<typeof rollouts>({ ...next, paused: hold.on }) : shards;
}

/** What was asked for, or as much of it as one execution samples and what the next one is asked. */
async function sampleRounds(
  { round, shards: known = [], part, ...asked }: SamplingRequest,
  hold: Hold,
): Promise<{ shards?: RolloutShard[]; next?: SamplingRequest }> {
  const { checkpoint } = asked;
  let at: Pick<SamplingRequest, 'round' | 'shards' | 'part'> = { round, shards: known, ...(part && { part }) };
  let request = await cpu.prepareRollouts({ ...asked, ...at });
  if (request.batches === 0) return {};
  const holder = workflowInfo().workflowId;
  await rollout().acquireEngine({ checkpoint, holder });
  try {
    for (;;) {
      const sampled = await sampleBatches(asked, request, hold);
      const { number, shards: parts } = at.part ?? { number: 0, shards: [] };
      if (request.followed) {
        const listed = await cpu.listShards({ shards: sampled });
        return { next: { ...asked, ...at, part: { number: number + 1, shards: [...parts, listed] } } };
      }
      const shards = [...(at.shards ?? []), ...parts, ...sampled];
      if (!request.more) return { shards };
      at = { round: at.round + 1, shards };
      request = await cpu.prepareRollouts({ ...asked, ...at });
    }
  } finally {
    await always(() => rollout().releaseEngine({ holder }));
  }
}

/** The batches of one request, in a sliding window. */
async function sampleBatches(
  { node, step, checkpoint }: Pick<SamplingRequest, 'node' | 'step' | 'checkpoint'>,
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
