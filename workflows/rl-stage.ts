import { continueAsNew, workflowInfo } from '@temporalio/workflow';
import type { NodeRef, StageMove, StagePlan } from '../activities/index.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import { cpu } from './activity-proxies.ts';
import { type Hold, listenForPause, stopForHealth, stopIfPaused } from './pausing.ts';
import { type Step, sampleStep } from './rl-step.ts';
import { samplingWithin } from './stage-sampling.ts';
import { type HeldTrainer, withTrainer } from './trainer-hold.ts';
import { begin, type UnderWay } from './under-way.ts';
import { verlStage } from './verl-stage.ts';

/** Leave room below the 10,000 events a history may have. */
const MAX_EVENTS = 8_000;

export interface RlStageInput {
  node: NodeRef;
  /** Whether the pause that the execution before this one had heard of still lasts. */
  paused?: boolean;
}

interface Stage {
  node: NodeRef;
  plan: StagePlan;
  hold: Hold;
}

/** An rl stage from where it stands to its end, however often that takes a new execution or another trainer. */
export async function rl_stage({ node, paused }: RlStageInput): Promise<ArtifactRef> {
  const hold = listenForPause(paused);
  const plan = await cpu.stagePlan(node);
  if (plan.backend === 'verl') return verlStage(node, hold);
  const artifact = await withTrainer(node, (trainer) => takeSteps({ node, plan, hold }, trainer));
  return artifact ?? continueAsNew<typeof rl_stage>({ node, paused: hold.on });
}

/**
 * Steps of sample → roll out → score → filter → advantages → train → sync, and between them what the stage measures of
 * itself. What comes next is decided by what is recorded, so it goes on from the ledger after any crash. `ahead` is the
 * step after the next, under way while the next one trains. Null, for a new history, only while nothing is open.
 */
async function takeSteps({ node, plan, hold }: Stage, trainer: HeldTrainer): Promise<ArtifactRef | null> {
  const { activities, epoch } = trainer;
  const { steps } = plan;
  const sampleAt = (weights: Checkpoint) => samplingWithin(node, weights, hold);
  const beginStep = (of: Pick<Step, 'step' | 'checkpoint' | 'training'>) =>
    begin(() => sampleStep({ node, plan, ...of }, trainer, sampleAt(of.checkpoint)));

  let { step, checkpoint, sampler = checkpoint } = await activities.openTrainer({ node, epoch, steps });
  let ahead: UnderWay | null = null;
  try {
    for (;;) {
      if (ahead === null && isLong()) return null;
      const move = await moveAfter(node, step, plan);
      if (move.do === 'end') {
        await ahead?.drop();
        if (ahead) await cpu.noteDropped({ node, step: step + 1, steps });
        const published = await activities.publishStage({ node, epoch, step: move.step, reason: move.reason });
        await activities.closeTrainer({ node, epoch });
        return published;
      }
      if (hold.on) await ahead?.settled;
      stopIfPaused(hold);
      const sample = sampleAt(checkpoint);
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
        case 'train': {
          step += 1;
          ahead ??= beginStep({ step, checkpoint: sampler });
          await ahead.done;
          const training = activities.trainStep({ node, epoch, step, steps });
          ahead = move.ahead && !isLong() ? beginStep({ step: step + 1, checkpoint, training }) : null;
          sampler = checkpoint = (await training).checkpoint;
          break;
        }
        default:
          move satisfies never;
      }
    }
  } finally {
    await ahead?.drop();
  }
}

const isLong = (): boolean => workflowInfo().historyLength > MAX_EVENTS;

/** Most stages end after so many steps, look at nothing on the way and are on-policy: those are not asked about. */
async function moveAfter(node: NodeRef, step: number, { steps, ends, looks }: StagePlan): Promise<StageMove> {
  if (looks) return cpu.nextMove({ node, step, steps, ends });
  return step < steps ? { do: 'train' } : { do: 'end', step, reason: ends };
}
