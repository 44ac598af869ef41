import type { WorkerOptions } from '@temporalio/worker';
import { createIndexActivities } from '../activities/build-index.ts';
import { createCorpusActivities } from '../activities/corpus.ts';
import { createDemonstrationActivities } from '../activities/demonstrations.ts';
import { createEvaluateStageActivities } from '../activities/evaluate-stage.ts';
import { createHoldTrainerActivities } from '../activities/hold-trainer.ts';
import type {
  CpuActivities,
  GpuActivities,
  RolloutActivities,
  StageActivities,
  TrainerActivities,
} from '../activities/index.ts';
import { createTaskActivities } from '../activities/make-tasks.ts';
import { createNextMoveActivities } from '../activities/next-move.ts';
import { createPlanRlStepActivities } from '../activities/plan-rl-step.ts';
import { createPlanSftActivities } from '../activities/plan-sft.ts';
import { createPrepareRolloutsActivities } from '../activities/prepare-rollouts.ts';
import { createPublishBenchmarkActivities } from '../activities/publish-benchmark.ts';
import { createPublishProfileActivities } from '../activities/publish-profile.ts';
import { createRefreshPoolActivities } from '../activities/refresh-pool.ts';
import { createResolveCheckpointActivities } from '../activities/resolve-checkpoint.ts';
import { createRolloutActivities } from '../activities/rollout-batch.ts';
import { createRunNodesActivities } from '../activities/run-nodes.ts';
import { createTrackingActivities } from '../activities/tracking.ts';
import { createTrainStageActivities } from '../activities/train-stage.ts';
import { createVerlExportActivities } from '../activities/verl-export.ts';
import { createVerlPublishActivities } from '../activities/verl-publish.ts';
import { createVerlSegmentActivities } from '../activities/verl-segment.ts';
import { createReportActivities } from '../activities/write-report.ts';
import type { Dependencies } from './dependencies.ts';

/** Resource classes, each with a task queue of its own; `host` is the trainer host's. */
export type ResourceClass = 'cpu' | 'rollout' | 'gpu' | 'host';

/** What the workers of each class can do. A missing activity does not compile. */
export function activitiesFor(resources: ResourceClass, deps: Dependencies): NonNullable<WorkerOptions['activities']> {
  switch (resources) {
    case 'cpu':
      return cpuActivities(deps);
    case 'rollout':
      return createRolloutActivities(withReport(deps)) satisfies RolloutActivities;
    case 'gpu':
      return createHoldTrainerActivities({ ...deps, taskQueue: deps.queues.host }) satisfies GpuActivities;
    case 'host':
      return createTrainStageActivities(deps) satisfies TrainerActivities;
    default:
      return resources satisfies never;
  }
}

function cpuActivities(deps: Dependencies): CpuActivities & StageActivities {
  const reporting = withReport(deps);
  return {
    ...createRunNodesActivities(deps),
    ...createCorpusActivities(reporting),
    ...createIndexActivities(reporting),
    ...createTaskActivities(reporting),
    ...createDemonstrationActivities(reporting),
    ...createResolveCheckpointActivities(deps),
    ...createPrepareRolloutsActivities(deps),
    ...createPublishProfileActivities(reporting),
    ...createPublishBenchmarkActivities(reporting),
    ...createReportActivities(reporting),
    ...createPlanSftActivities(deps),
    ...createPlanRlStepActivities(deps),
    ...createEvaluateStageActivities(deps),
    ...createRefreshPoolActivities(deps),
    ...createNextMoveActivities(deps),
    ...createVerlExportActivities(deps),
    ...createVerlSegmentActivities(deps),
    ...createVerlPublishActivities(deps),
    ...createTrackingActivities(deps),
  };
}

/** Node activities only report; the rest of the diary is kept by the workflow's bookkeeping. */
const withReport = (deps: Dependencies) => ({ ...deps, progress: deps.progress.report });
