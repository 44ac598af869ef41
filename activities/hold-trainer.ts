import { Context } from '@temporalio/activity';
import type { Client } from '@temporalio/client';
import type { Unkeyed } from '../schemas/node-parameters.ts';
import type { PlanNode } from '../schemas/plan.ts';
import type { Processes } from './adapters/launch-command.ts';
import type { SpendLedger } from './adapters/spend-ledger.ts';
import type { TrainerHost } from './adapters/trainer-host.ts';
import type { GpuActivities, TrainerHold } from './index.ts';
import type { PlanReader } from './plan-reader.ts';

export interface HoldTrainerDeps {
  client: Client;
  host: TrainerHost;
  plans: PlanReader;
  spend: SpendLedger;
  /** Cores that a stage without GPUs keeps busy. */
  trainer: { threads: number };
  /** This host's own queue, `<prefix>-gpu@<host>`. */
  taskQueue: string;
}

const INTERVAL_MS = 2_000;

export const createHoldTrainerActivities = ({
  client,
  host,
  plans,
  spend,
  trainer,
  taskQueue,
}: HoldTrainerDeps): GpuActivities => ({
  /**
   * Occupies the GPU slot for a stage. Publishes where the trainer is, then watches the process: a killed one is
   * replaced under the same epoch, and the next step opens it from the ledger. Ends when cancelled.
   */
  async holdTrainer({ node, workflowId }) {
    const { cancellationSignal, heartbeat, sleep, info } = Context.current();
    const workflow = client.workflow.getHandle(workflowId);
    const runId = info.workflowExecution?.runId ?? '';
    const epoch = await host.acquire(node.key, `${workflowId}/${runId}/${info.activityId}`);
    const planned = await plans.node(node);
    const processes = processesOf(planned);
    const waiting = { signal: cancellationSignal, onWait: () => heartbeat() };
    await host.ensureProcess(node.key, epoch, processes, waiting);
    const machines = machinesOf(planned, trainer.threads);
    await workflow.signal<[TrainerHold]>('trainer_held', { taskQueue, epoch });
    try {
      for (;;) {
        await host.ensureProcess(node.key, epoch, processes, waiting);
        await spend.hold(node.key, `trainer ${epoch}`, machines);
        heartbeat();
        await sleep(INTERVAL_MS);
      }
    } finally {
      if (cancellationSignal.aborted && isAsked(cancellationSignal.reason)) await host.end(node.key, epoch);
    }
  },
});

/** One process a GPU; on CPUs, one process with all cores. */
function processesOf({ unkeyed }: PlanNode): Processes {
  const { gpu = 0, nodes = 1 } = (unkeyed as Unkeyed).resources ?? {};
  return gpu > 0 ? { count: gpu, machines: nodes } : { count: 1, machines: 1 };
}

/** What the hold keeps from others: GPUs where the stage has them, else the cores of the host. */
function machinesOf({ unkeyed }: PlanNode, cores: number): { gpus: number; cpus: number } {
  const { gpu = 0, nodes = 1 } = (unkeyed as Unkeyed).resources ?? {};
  return gpu > 0 ? { gpus: gpu, cpus: 0 } : { gpus: 0, cpus: cores * nodes };
}

/** A worker that shuts down leaves the process to be adopted; a cancelled hold ends it. */
export const isAsked = (reason: unknown): boolean =>
  !String((reason as Error | undefined)?.message ?? reason).includes('SHUTDOWN');
