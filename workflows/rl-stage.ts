import { continueAsNew, startChild, workflowInfo } from '@temporalio/workflow';
import type { NodeRef, RolloutShard } from '../activities/index.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import { cpu } from './activity-proxies.ts';
import { executePausable, type Hold, listenForPause, stopIfPaused } from './pausing.ts';
import { rollouts } from './rollouts.ts';
import { type HeldTrainer, withTrainer } from './trainer-hold.ts';

/** Leave room below the 10,000 events a history may have. */
const MAX_EVENTS = 8_000;
/** A step whose groups all agree teaches nothing: sample other prompts, at most this often. */
const MAX_ROUNDS = 3;

export interface RlStageInput {
  node: NodeRef;
  /** Whether the pause that the execution before this one had heard of still lasts. */
  paused?: boolean;
}

/** Steps of sample → roll out → score → filter → advantages → train → sync; goes on from the ledger after any crash. */
export async function rl_stage({ node, paused }: RlStageInput): Promise<ArtifactRef> {
  const hold = listenForPause(paused);
  const { steps, beliefs } = await cpu.stagePlan(node);
  const artifact = await withTrainer(node, async (trainer) => {
    const { activities, epoch } = trainer;
    let { step, checkpoint } = await activities.openTrainer({ node, epoch });
    while (step < steps) {
      if (workflowInfo().historyLength > MAX_EVENTS) return null;
      stopIfPaused(hold);
      step += 1;
      checkpoint = await optimizerStep({ node, step, steps, beliefs }, checkpoint, trainer, hold);
    }
    const published = await activities.publishStage({ node, epoch, step, reason: 'steps' });
    await activities.closeTrainer({ node, epoch });
    return published;
  });
  return artifact ?? continueAsNew<typeof rl_stage>({ node, paused: hold.on });
}

async function optimizerStep(
  {
    node,
    step,
    steps,
    beliefs,
  }: { node: NodeRef; step: number; steps: number; beliefs: 'trainer' | 'engine' | undefined },
  checkpoint: Checkpoint,
  trainer: HeldTrainer,
  hold: Hold,
): Promise<Checkpoint> {
  const shards: RolloutShard[] = [];
  const scored: string[] = [];
  for (let round = 0; ; round++) {
    const workflowId = `rollouts/${node.key}/${step}${round > 0 ? `.${round}` : ''}`;
    const sealed = await executePausable(
      () => startChild(rollouts, { workflowId, args: [{ node, step, round, checkpoint }] }),
      () => hold.on,
    );
    shards.push(...sealed);
    if (beliefs === 'trainer') {
      const { epoch, activities } = trainer;
      scored.push((await activities.scoreBeliefs({ node, epoch, step, steps, shards: sealed })).beliefs);
    }
    const last = round + 1 === MAX_ROUNDS;
    const { usable } = await cpu.planRlStep({
      node,
      step,
      shards,
      ...(scored.length > 0 && { beliefs: scored }),
      checkpoint,
      last,
    });
    if (usable) return (await trainer.activities.trainStep({ node, epoch: trainer.epoch, step, steps })).checkpoint;
  }
}
