import type { NodeRef } from '../activities/index.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import { cpu } from './activity-proxies.ts';
import { listenForPause, stopIfPaused } from './pausing.ts';
import { withTrainer } from './trainer-hold.ts';

/** Supervised fine-tuning: all batches are in the ledger before the first step, so any crash replays them. */
export async function sft_stage({ node }: { node: NodeRef }): Promise<ArtifactRef> {
  const hold = listenForPause();
  const { steps } = await cpu.planSft(node);
  return withTrainer(node, async ({ activities, epoch }) => {
    const opened = await activities.openTrainer({ node, epoch, steps });
    for (let step = opened.step + 1; step <= steps; step++) {
      stopIfPaused(hold);
      await activities.trainStep({ node, epoch, step, steps });
    }
    const artifact = await activities.publishStage({ node, epoch, step: steps, reason: 'epochs' });
    await activities.closeTrainer({ node, epoch });
    return artifact;
  });
}
