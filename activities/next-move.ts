import { nodeOf } from '../schemas/node-parameters.ts';
import type { PoolLedger } from './adapters/pool-ledger.ts';
import type { StageActivities } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { nextMove } from './stage-course.ts';

export interface NextMoveDeps {
  plans: PlanReader;
  pools: PoolLedger;
  progress: NodeProgress;
}

/** A point for each pause that was told: it stands in MLflow beside the curve that led to it. */
const PAUSED = 'health/paused';
/** A point at a step that was sampled ahead and is not trained. */
const DROPPED = 'rl/rollouts_dropped';

export const createNextMoveActivities = ({
  plans,
  pools,
  progress,
}: NextMoveDeps): Pick<StageActivities, 'nextMove' | 'noteHealthPause' | 'noteDropped'> => ({
  async nextMove({ node: ref, step, steps, ends }) {
    const { parameters } = nodeOf('rl', await plans.node(ref));
    const { evaluate, health } = parameters;
    const names = [PAUSED, ...(evaluate ? [evaluate.metric] : []), ...Object.keys(health?.limits ?? {})];
    const curves = await progress.curves(ref.key, names);
    const pool = await pools.newest(ref.key, step);
    return nextMove(parameters, {
      step,
      steps,
      ends,
      curves,
      pausedAt: Math.max(0, ...(curves.get(PAUSED)?.keys() ?? [])),
      refreshed: pool?.step === step ? pool.tasks : null,
    });
  },

  noteHealthPause: ({ node, step }) => progress.record(node.key, step, { [PAUSED]: 1 }),

  async noteDropped({ node, step, steps }) {
    await progress.record(node.key, step, { [DROPPED]: 1 });
    await progress.report(node.key, step - 1, steps, `ended before step ${step}, whose rollouts are dropped`);
  },
});
