import { startChild } from '@temporalio/workflow';
import type { NodeRef, RolloutShard, SamplingRequest } from '../activities/index.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import { executePausable, type Hold } from './pausing.ts';
import { rollouts } from './rollouts.ts';

export type SampleWithin = (
  asked: Pick<SamplingRequest, 'step' | 'purpose' | 'refill'> & { round?: number },
) => Promise<RolloutShard[]>;

/** Rollouts of a stage at one of its checkpoints, each request a child workflow of its own. */
export const samplingWithin =
  (node: NodeRef, checkpoint: Checkpoint, hold: Hold): SampleWithin =>
  ({ round = 0, ...asked }) => {
    const what = asked.purpose ? `.${asked.purpose}` : round > 0 ? `.${round}` : '';
    const workflowId = `rollouts/${node.key}/${asked.step}${what}`;
    return executePausable(
      () => startChild(rollouts, { workflowId, args: [{ node, round, checkpoint, ...asked }] }),
      () => hold.on,
    );
  };
