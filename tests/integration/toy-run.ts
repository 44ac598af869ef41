/** Plans of a few small nodes, and a worker that runs them: the real workflows, ledger and store; only the work is small. */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Context, heartbeat } from '@temporalio/activity';
import { Client, Connection } from '@temporalio/client';
import { bundleWorkflowCode, NativeConnection, Worker, type WorkflowBundle } from '@temporalio/worker';
import { toFailure } from '../../activities/failure.ts';
import type { NodeRef } from '../../activities/index.ts';
import { NodeProgress } from '../../activities/node-progress.ts';
import { PlanReader } from '../../activities/plan-reader.ts';
import { createRunNodesActivities } from '../../activities/run-nodes.ts';
import type { Stack } from '../../cli/open-stack.ts';
import type { BenchmarkBody } from '../../schemas/artifact.ts';
import { contentKey } from '../../schemas/canonical.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { NodeKind, Plan, PlanNode } from '../../schemas/plan.ts';

export interface ToyNode {
  id: string;
  kind?: NodeKind;
  inputs?: string[];
  /** How long it works, and in how many reported steps. */
  ms?: number;
  steps?: number;
  /** Ends like this: an outage is tried again and then succeeds, a failure and a missed gate are final. */
  ends?: 'done' | 'failure' | 'gate' | 'outage_once';
  /** Part of the key, so that two plans share a node exactly when they mean to. */
  salt?: string;
}

export function toyPlan(
  name: string,
  arms: Record<string, ToyNode[]>,
  options: { profile?: string; run?: string } = {},
): Plan {
  return {
    api_version: 'exp/v1',
    run_key: contentKey({ name, arms, run: options.run ?? '' }),
    name,
    profile: options.profile ?? 'local',
    spec_path: `${name}.yaml`,
    spec: { name },
    tracking: { mlflow_experiment: name },
    arms: Object.entries(arms).map(([arm, nodes]) => ({ name: arm, seed: 1, changes: {}, nodes: nodes.map(toyNode) })),
  };
}

/** A salt that no other test uses. */
export const freshSalt = (): string => randomUUID();

function toyNode({ id, kind = 'corpus', inputs = [], salt = '', ...parameters }: ToyNode): PlanNode {
  const key = contentKey({ id, kind, parameters, salt });
  return { id, kind, kind_version: 1, key, inputs, parameters, files: [], seed: null, unkeyed: {} };
}

let bundle: Promise<WorkflowBundle> | undefined;

export interface ToyWorker {
  /** How often each node's work was begun, by node id. */
  begun: Map<string, number>;
  stop(): Promise<void>;
}

export async function startToyWorker(stack: Stack): Promise<ToyWorker> {
  bundle ??= bundleWorkflowCode({ workflowsPath: fileURLToPath(new URL('../../workflows/index.ts', import.meta.url)) });
  const { address, namespace } = stack.connections.temporal;
  const connection = await NativeConnection.connect({ address });
  const clientConnection = await Connection.connect({ address });
  const begun = new Map<string, number>();
  const worker = await Worker.create({
    connection,
    namespace,
    taskQueue: 'exp-cpu',
    workflowBundle: await bundle,
    maxHeartbeatThrottleInterval: '200ms',
    activities: toyActivities(stack, new Client({ connection: clientConnection, namespace }), begun),
  });
  const running = worker.run();
  return {
    begun,
    async stop() {
      worker.shutdown();
      await running;
      await Promise.all([connection.close(), clientConnection.close()]);
    },
  };
}

function toyActivities(stack: Stack, client: Client, begun: Map<string, number>) {
  const { pool, store } = stack;
  const progress = new NodeProgress(pool);
  const plans = new PlanReader(store);
  const work = async (ref: NodeRef) => {
    begun.set(ref.id, (begun.get(ref.id) ?? 0) + 1);
    try {
      return await produce(ref, await plans.node(ref), stack, progress);
    } catch (error) {
      throw toFailure(error);
    }
  };
  const setStatus = async ({ run, status }: { run: string; status: string }): Promise<void> => {
    await pool.query('update runs set status = $2, ended_at = now() where id = $1', [run, status]);
  };
  return {
    ...createRunNodesActivities({ client, plans, store, progress, verifyLive: async () => true }),
    corpus: work,
    buildIndex: work,
    tasks: work,
    demonstrations: work,
    report: work,
    trackRunStarted: async () => {},
    trackNode: async () => {},
    trackArm: async () => {},
    finishRun: setStatus,
  };
}

async function produce(ref: NodeRef, node: PlanNode, { store }: Stack, progress: NodeProgress) {
  const { ms = 0, steps = 1, ends = 'done' } = node.parameters as Partial<ToyNode>;
  const { info, cancellationSignal } = Context.current();
  for (let step = 1; step <= steps; step++) {
    await sleep(ms / steps, undefined, { signal: cancellationSignal }).catch(() => {});
    heartbeat(step);
    await Context.current().sleep(0); // throws once cancelled
    await progress.report(ref.key, step, steps, `step ${step}/${steps}`);
  }
  if (ends === 'failure') throw new ExpError('DATA', ref.id, 'the toy has no data');
  if (ends === 'gate') throw new ExpError('TOO_FEW_SOLVABLE', ref.id, 'never 10, sometimes 0, always 2');
  if (ends === 'outage_once' && info.attempt === 1) throw new ExpError('UNAVAILABLE', ref.id, 'the service is away');
  return store.publish({
    key: ref.key,
    kind: ref.kind,
    inputs: [],
    files: {},
    body: { toy: ref.id },
    metrics: [],
  });
}

/** Publish a benchmark's artifact as its activity would, so that it is there to be reused and read. */
export async function publishBenchmark(stack: Stack, key: string, body: BenchmarkBody): Promise<void> {
  await stack.store.publish({ key, kind: 'benchmark', inputs: [], files: {}, body, metrics: [] });
}
