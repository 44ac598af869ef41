/** Plans of a few small nodes, and a worker that runs them: the real workflows, ledger and store; only the work is small. */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Context, heartbeat } from '@temporalio/activity';
import { Client, Connection } from '@temporalio/client';
import { bundleWorkflowCode, NativeConnection, Worker, type WorkflowBundle } from '@temporalio/worker';
import { SpendLedger } from '../../activities/adapters/spend-ledger.ts';
import { NOTHING } from '../../activities/budget.ts';
import { charged } from '../../activities/charged.ts';
import { toFailure } from '../../activities/failure.ts';
import type { NodeRef, RolloutActivities } from '../../activities/index.ts';
import { NodeProgress } from '../../activities/node-progress.ts';
import { PlanReader } from '../../activities/plan-reader.ts';
import { createRunNodesActivities } from '../../activities/run-nodes.ts';
import type { Stack } from '../../cli/open-stack.ts';
import type { BenchmarkBody } from '../../schemas/artifact.ts';
import { contentKey } from '../../schemas/canonical.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { NodeKind, Plan, PlanGate, PlanNode } from '../../schemas/plan.ts';

export interface ToyNode {
  id: string;
  kind?: NodeKind;
  inputs?: string[];
  /** How long it works, and in how many reported steps. */
  ms?: number;
  steps?: number;
  /** Ends like this: an outage is tried again and then succeeds, a failure and a missed gate are final. */
  ends?: 'done' | 'failure' | 'gate' | 'outage_once';
  /** Of a profile or a benchmark: its batches of rollouts, `ms` each. */
  batches?: number;
  /** Calls a batch makes, and the most it may make. */
  calls?: { taken: number; most: number };
  /** What a benchmark measured. */
  metrics?: Record<string, number>;
  /** Part of the key, so that two plans share a node exactly when they mean to. */
  salt?: string;
}

export function toyPlan(
  name: string,
  arms: Record<string, ToyNode[]>,
  options: { profile?: string; run?: string; gates?: PlanGate[]; budget?: object } = {},
): Plan {
  return {
    api_version: 'exp/v1',
    run_key: contentKey({ name, arms, run: options.run ?? '' }),
    name,
    profile: options.profile ?? 'local',
    spec_path: `${name}.yaml`,
    spec: { name, ...(options.budget && { budget: options.budget }) },
    tracking: { mlflow_experiment: name },
    arms: Object.entries(arms).map(([arm, nodes]) => ({
      name: arm,
      seed: 1,
      changes: {},
      nodes: nodes.map(toyNode),
      ...(options.gates && { gates: options.gates }),
    })),
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
  /** Batches sampled, by node id and batch, and leases given back. */
  sampled: string[];
  released: number;
  stop(): Promise<void>;
}

export async function startToyWorker(stack: Stack): Promise<ToyWorker> {
  bundle ??= bundleWorkflowCode({ workflowsPath: fileURLToPath(new URL('../../workflows/index.ts', import.meta.url)) });
  const { address, namespace } = stack.connections.temporal;
  const connection = await NativeConnection.connect({ address });
  const clientConnection = await Connection.connect({ address });
  const toy: ToyWorker = { begun: new Map(), sampled: [], released: 0, stop };
  const common = { connection, namespace, maxHeartbeatThrottleInterval: '200ms' } as const;
  const workers = await Promise.all([
    Worker.create({
      ...common,
      taskQueue: 'exp-cpu',
      workflowBundle: await bundle,
      activities: toyActivities(stack, new Client({ connection: clientConnection, namespace }), toy.begun),
    }),
    Worker.create({ ...common, taskQueue: 'exp-rollout', activities: toyRollouts(stack, toy) }),
  ]);
  const running = workers.map((worker) => worker.run());
  return toy;

  async function stop() {
    for (const worker of workers) worker.shutdown();
    await Promise.all(running);
    await Promise.all([connection.close(), clientConnection.close()]);
  }
}

/** A thousand tool calls are a pound. */
const PRICES = { currency: 'GBP', gpu_hour: 2, cpu_hour: 0, million_tokens: 0, thousand_tool_calls: 1 };

/** Batches that are sealed outlive a worker, as shards do. */
const sealed = new Set<string>();

function toyRollouts(stack: Stack, toy: ToyWorker): RolloutActivities {
  const { pool } = stack;
  const plans = new PlanReader(stack.store);
  const spend = new SpendLedger({ pool, plans, prices: PRICES });
  return {
    acquireEngine: async () => ({ epoch: 1 }),
    releaseEngine: async () => {
      toy.released += 1;
    },
    async rolloutBatch({ node: ref, batch }) {
      const { parameters } = await plans.node(ref);
      const name = `${ref.key}/${batch}`;
      if (sealed.has(name)) return { blob: name, trajectories: 1, failed: 0 };
      const { cancellationSignal: signal, info } = Context.current();
      const { ms = 0, calls = { taken: 0, most: 0 }, ends } = parameters as Partial<ToyNode>;
      const most = { ...NOTHING, tool_calls: calls.most };
      try {
        await charged(spend, { node: ref, unit: name, most, signal, waiting: () => heartbeat() }, async (taken) => {
          toy.sampled.push(`${ref.id}/${batch}`);
          await sleep(ms);
          taken.tool_calls = calls.taken;
          if (ends === 'outage_once' && info.attempt === 1) throw new ExpError('UNAVAILABLE', ref.id, 'it is away');
          sealed.add(name);
        });
      } catch (error) {
        throw toFailure(error);
      }
      return { blob: name, trajectories: 1, failed: 0 };
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
    ...createRunNodesActivities({ client, plans, store, progress, pool, verifyLive: async () => true }),
    corpus: work,
    buildIndex: work,
    tasks: work,
    demonstrations: work,
    report: work,
    resolveCheckpoint: async () => ({ model: 'toy', model_sha256: '', adapters: [], digest: 'toy' }),
    prepareRollouts: async ({ node }: { node: NodeRef }) => {
      const { batches = 1 } = (await plans.node(node)).parameters as Partial<ToyNode>;
      return { request: node.key, trajectories: batches, batches };
    },
    publishProfile: ({ node }: { node: NodeRef }) => work(node),
    publishBenchmark: ({ node }: { node: NodeRef }) => work(node),
    trackRunStarted: async () => {},
    trackNode: async () => {},
    trackArm: async () => {},
    finishRun: setStatus,
  };
}

async function produce(ref: NodeRef, node: PlanNode, { store }: Stack, progress: NodeProgress) {
  const { ms = 0, steps = 1, ends = 'done', batches, metrics = {} } = node.parameters as Partial<ToyNode>;
  const { info, cancellationSignal } = Context.current();
  for (let step = 1; step <= steps && batches === undefined; step++) {
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
    metrics: Object.entries(metrics).map(([name, value]) => ({ name, step: 0, value, timestamp_ms: 0 })),
  });
}

/** Publish a benchmark's artifact as its activity would, so that it is there to be reused and read. */
export async function publishBenchmark(stack: Stack, key: string, body: BenchmarkBody): Promise<void> {
  await stack.store.publish({ key, kind: 'benchmark', inputs: [], files: {}, body, metrics: [] });
}
