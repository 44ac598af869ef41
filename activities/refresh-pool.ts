import type { StageActivities } from './index.ts';
import { bodyOf, linesOf, measurePassRates, profileMetrics, readByTask, rolloutOf } from './measure-pass-rates.ts';
import type { NodeProgress } from './node-progress.ts';
import { profileOf } from './prepare-rollouts.ts';
import { withPulse } from './pulse.ts';
import { readTasks } from './task-files.ts';
import type { PoolSources } from './training-pool.ts';

export const createRefreshPoolActivities = (
  deps: PoolSources & { progress: NodeProgress },
): Pick<StageActivities, 'refreshPool'> => ({
  /** Pass rates by the rules of the stage's profile; what they keep is what steps after `step` draw from. */
  refreshPool: ({ node: ref, step, shards }) =>
    withPulse(async (moved) => {
      const { plans, store, pools, progress } = deps;
      const { parameters } = await profileOf(deps, ref);
      const capabilities = new Map<string, string>();
      for await (const task of readTasks(store, await plans.input(ref, 'tasks')))
        capabilities.set(task.task_id, task.capability);
      const measured = measurePassRates(await readByTask(store, shards, rolloutOf, moved), capabilities, parameters);
      const body = bodyOf(measured, parameters);
      const blob = await store.putBlob(Buffer.from(linesOf(measured.rates)));
      await pools.choose(ref.key, { step, tasks: body.kept, blob });
      await progress.record(ref.key, step, profileMetrics(body, measured));
    }),
});
