import { Context } from '@temporalio/activity';
import type { Client } from '@temporalio/client';
import type { TrainerHost } from './adapters/trainer-host.ts';
import type { GpuActivities, TrainerHold } from './index.ts';

export interface HoldTrainerDeps {
  client: Client;
  host: TrainerHost;
  /** This host's own queue, `<prefix>-gpu@<host>`. */
  taskQueue: string;
}

const INTERVAL_MS = 2_000;

export const createHoldTrainerActivities = ({ client, host, taskQueue }: HoldTrainerDeps): GpuActivities => ({
  /**
   * Occupies the GPU slot for a stage. Publishes where the trainer is, then watches the process: a killed one is
   * replaced under the same epoch, and the next step opens it from the ledger. Ends when cancelled.
   */
  async holdTrainer({ node, workflowId }) {
    const { cancellationSignal, heartbeat, sleep, info } = Context.current();
    const workflow = client.workflow.getHandle(workflowId);
    const runId = info.workflowExecution?.runId ?? '';
    const epoch = await host.acquire(node.key, `${workflowId}/${runId}/${info.activityId}`);
    await host.ensureProcess(node.key, epoch);
    await workflow.signal<[TrainerHold]>('trainer_held', { taskQueue, epoch });
    try {
      for (;;) {
        await host.ensureProcess(node.key, epoch);
        heartbeat();
        await sleep(INTERVAL_MS);
      }
    } finally {
      if (cancellationSignal.aborted && isAsked(cancellationSignal.reason)) await host.end(node.key, epoch);
    }
  },
});

/** A worker that shuts down leaves the process to be adopted; a cancelled hold ends it. */
const isAsked = (reason: unknown): boolean =>
  !String((reason as Error | undefined)?.message ?? reason).includes('SHUTDOWN');
