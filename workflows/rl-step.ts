import type { NodeRef, RolloutShard, SamplingRequest, StagePlan } from '../activities/index.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import { cpu } from './activity-proxies.ts';
import type { SampleWithin } from './stage-sampling.ts';
import type { HeldTrainer } from './trainer-hold.ts';

interface Step {
  node: NodeRef;
  step: number;
  /** Weights that sample. */
  checkpoint: Checkpoint;
  plan: StagePlan;
}

/** One step: its groups, as many more as were dropped, and the update. Returns the weights after it. */
export async function optimizerStep(
  { node, step, checkpoint, plan }: Step,
  { activities, epoch }: HeldTrainer,
  sample: SampleWithin,
): Promise<Checkpoint> {
  const shards: RolloutShard[] = [];
  const beliefs: string[] = [];
  let refill: SamplingRequest['refill'];
  for (let round = 0; ; round++) {
    const sampled = await sample({ step, round, ...(refill && { refill }) });
    shards.push(...sampled);
    if (plan.beliefs === 'trainer' && sampled.length > 0)
      beliefs.push((await activities.scoreBeliefs({ node, epoch, step, steps: plan.steps, shards: sampled })).beliefs);
    // Where no other prompts are left, another round would find none either.
    const last = round >= plan.refills || sampled.length === 0;
    const { usable, missing = 0 } = await cpu.planRlStep({ node, step, shards, beliefs, checkpoint, last });
    if (usable) return (await activities.trainStep({ node, epoch, step, steps: plan.steps })).checkpoint;
    refill = { start: refill ? refill.start + refill.count : 0, count: missing };
  }
}
