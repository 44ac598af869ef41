import { ActivityCancellationType, proxyActivities, workflowInfo } from '@temporalio/workflow';
import type {
  CpuActivities,
  GpuActivities,
  RolloutActivities,
  StageActivities,
  TrainerActivities,
} from '../activities/index.ts';

/** An outage is waited out with growing pauses; an answer for the user comes back non-retryable and ends at once. */
const retry = { initialInterval: '1s', backoffCoefficient: 2, maximumInterval: '15s', maximumAttempts: 40 } as const;

/** Work that lasts: a heartbeat comes every 2 s, and only while the work itself moves. */
const longWork = {
  startToCloseTimeout: '12 hours',
  heartbeatTimeout: '20s',
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
  retry,
} as const;

/** Bookkeeping: a few rows or one blob. */
export const ledger = proxyActivities<CpuActivities & StageActivities>({
  startToCloseTimeout: '60s',
  retry,
});

export const cpu = proxyActivities<CpuActivities & StageActivities>(longWork);

export const rollout = () => proxyActivities<RolloutActivities>({ taskQueue: queueOf('rollout'), ...longWork });

export const gpu = () => proxyActivities<GpuActivities>({ taskQueue: queueOf('gpu'), ...longWork });

/** Workflows run on `<prefix>-cpu`, and so do activities that name no queue; the others stand beside it. */
const queueOf = (resources: 'rollout' | 'gpu'): string => workflowInfo().taskQueue.replace(/cpu$/, resources);

/** Activities of the host that holds the trainer; a host that is gone shows as a schedule-to-start timeout. */
export const trainerOn = (taskQueue: string) =>
  proxyActivities<TrainerActivities>({ taskQueue, ...longWork, scheduleToStartTimeout: '60s' });
