import type { NodeRef, RolloutShard, SamplingRequest, StagePlan } from '../activities/index.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import { cpu } from './activity-proxies.ts';
import type { SampleWithin } from './stage-sampling.ts';
import type { HeldTrainer } from './trainer-hold.ts';

export interface Step {
  node: NodeRef;
  step: number;
  /** Weights that sample. */
  checkpoint: Checkpoint;
  plan: StagePlan;
  /** The step before, where it still trains: the trainer measures beliefs once it has. */
  training?: Promise<unknown>;
}

/** The groups of one step, and as many more as were dropped, until its batch is in the ledger. */
export async function sampleStep(
  { node, step, checkpoint, plan, training }: Step,
  { activities, epoch }: HeldTrainer,
  sample: SampleWithin,
): Promise<void> {
  const shards: RolloutShard[] = [];
  const beliefs: string[] = [];
  let refill: SamplingRequest['refill'];
  for (let round = 0; ; round++) {
    const sampled = await sample({ step, round, ...(refill && { refill }) });
    shards.push(...sampled);
    if (plan.beliefs === 'trainer' && sampled.length > 0) {
      await training;
      beliefs.push((await activities.scoreBeliefs({ node, epoch, step, steps: plan.steps, shards: sampled })).beliefs);
    }
    // Where no other prompts are left, another round would find none either.
    const last = round >= plan.refills || sampled.length === 0;
    const { usable, missing = 0 } = await cpu.planRlStep({ node, step, shards, beliefs, checkpoint, last });
    if (usable) return;
    refill = { start: refill ? refill.start + refill.count : 0, count: missing };
  }
}
