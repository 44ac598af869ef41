import { continueAsNew, workflowInfo } from '@temporalio/workflow';
import type { NodeRef, StageMove, StagePlan } from '../activities/index.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import { cpu } from './activity-proxies.ts';
import { listenForPause, stopForHealth, stopIfPaused } from './pausing.ts';
import { optimizerStep } from './rl-step.ts';
import { samplingWithin } from './stage-sampling.ts';
import { withTrainer } from './trainer-hold.ts';
import { verlStage } from './verl-stage.ts';

/** Leave room below the 10,000 events a history may have. */
const MAX_EVENTS = 8_000;

export interface RlStageInput {
  node: NodeRef;
  /** Whether the pause that the execution before this one had heard of still lasts. */
  paused?: boolean;
}

/**
 * Steps of sample → roll out → score → filter → advantages → train → sync, and between them what the stage measures of
 * itself. What comes next is decided by what is recorded, so it goes on from the ledger after any crash.
 */
export async function rl_stage({ node, paused }: RlStageInput): Promise<ArtifactRef> {
  const hold = listenForPause(paused);
  const plan = await cpu.stagePlan(node);
  if (plan.backend === 'verl') return verlStage(node, hold);
  const artifact = await withTrainer(node, async (trainer) => {
    const { activities, epoch } = trainer;
    let { step, checkpoint } = await activities.openTrainer({ node, epoch });
    for (;;) {
      if (workflowInfo().historyLength > MAX_EVENTS) return null;
      const move = await moveAfter(node, step, plan);
      if (move.do === 'end') {
        const published = await activities.publishStage({ node, epoch, step: move.step, reason: move.reason });
        await activities.closeTrainer({ node, epoch });
        return published;
      }
      stopIfPaused(hold);
      const sample = samplingWithin(node, checkpoint, hold);
      switch (move.do) {
        case 'pause':
          await cpu.noteHealthPause({ node, step });
          return stopForHealth(move.reason);
        case 'evaluate':
          await cpu.recordEvaluation({ node, step, shards: await sample({ step, purpose: 'evaluation' }) });
          break;
        case 'refresh':
          await cpu.refreshPool({ node, step, shards: await sample({ step, purpose: 'refresh' }) });
          break;
        case 'train':
          step += 1;
          checkpoint = await optimizerStep({ node, step, checkpoint, plan }, trainer, sample);
          break;
        default:
          move satisfies never;
      }
    }
  });
  return artifact ?? continueAsNew<typeof rl_stage>({ node, paused: hold.on });
}

/** Most stages end after so many steps and look at nothing on the way: those are not asked about. */
async function moveAfter(node: NodeRef, step: number, { steps, ends, looks }: StagePlan): Promise<StageMove> {
  if (looks) return cpu.nextMove({ node, step, steps, ends });
  return step < steps ? { do: 'train' } : { do: 'end', step, reason: ends };
}
