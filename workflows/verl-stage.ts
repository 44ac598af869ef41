import type { NodeRef } from '../activities/index.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import { cpu } from './activity-proxies.ts';
import { type Hold, stopIfPaused } from './pausing.ts';

/** An rl stage that verl runs: segments of steps, each a job of Ray that goes on from the last one's checkpoint. */
export async function verlStage(node: NodeRef, hold: Hold): Promise<ArtifactRef> {
  const { ends } = await cpu.exportVerl(node);
  for (const [segment, until] of ends.entries()) {
    stopIfPaused(hold);
    await cpu.runVerlSegment({ node, segment, until });
  }
  return cpu.publishVerl({ node, step: ends.at(-1) as number });
}
