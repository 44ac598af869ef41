import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Context } from '@temporalio/activity';
import { ApplicationFailure } from '@temporalio/common';
import { TestWorkflowEnvironment } from '@temporalio/testing';
import { bundleWorkflowCode, Worker, type WorkflowBundle } from '@temporalio/worker';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { stringify } from 'yaml';
import type { NodeOutcome, NodeRef, NodeSkeleton } from '../../activities/index.ts';
import { createRunNodesActivities } from '../../activities/run-nodes.ts';
import { type ArtifactLookup, decideActions } from '../../plan/reuse.ts';
import { venvBin } from '../../services/home.ts';
import { type Fields, Random, randomChange, randomSpec, type Value, withOneChange } from '../random-specs.ts';
import { folderWith, planFile } from '../unit/plan-fixture.ts';

/** Real Temporal server, real workflows; activities are fakes that count what was asked of them. */
let temporal: TestWorkflowEnvironment;
let workflowBundle: WorkflowBundle;

beforeAll(async () => {
  temporal = await TestWorkflowEnvironment.createLocal({
    server: { executable: { type: 'existing-path', path: venvBin('temporal') } },
  });
  workflowBundle = await bundleWorkflowCode({
    workflowsPath: fileURLToPath(new URL('../../workflows/index.ts', import.meta.url)),
  });
});

afterAll(async () => {
  await temporal?.teardown();
});

type WrittenNode = Omit<NodeSkeleton, 'plan' | 'arm'>;
type Behaviour = (ref: NodeRef) => Promise<void>;

/** Workers for one test: plans are written by hand, arm by arm or as their only one, and each node kind runs `behaviour`. */
async function stage(plans: Record<string, WrittenNode[] | Record<string, WrittenNode[]>>, behaviour: Behaviour) {
  const executed: string[] = [];
  const executedKeys: string[] = [];
  const tracked: NodeOutcome[] = [];
  const finished: Record<string, string> = {};
  const artifactOf = (key: string) => ({ key, kind: 'any', generation: 1, digest: key });
  const published = new Set<string>();
  const produce = async (ref: NodeRef) => {
    executed.push(ref.id);
    executedKeys.push(ref.key);
    await behaviour(ref);
    published.add(ref.key);
    return artifactOf(ref.key);
  };
  const armsOf = (plan: string): Record<string, WrittenNode[]> => {
    const written = plans[plan] ?? [];
    return Array.isArray(written) ? { main: written } : written;
  };
  const { requestNode, leaveNode } = createRunNodesActivities({
    client: temporal.client,
    pool: { query: async () => ({ rows: [] }) },
  } as never);
  const activities = {
    requestNode,
    leaveNode,
    listArms: async ({ plan }: { plan: string }) => ({ arms: Object.keys(armsOf(plan)) }),
    loadSkeleton: async ({ plan, arm }: { plan: string; arm: string }) =>
      (armsOf(plan)[arm] ?? []).map((node) => ({ ...node, plan, arm })),
    findArtifact: async ({ key }: NodeRef) => (published.has(key) ? artifactOf(key) : null),
    corpus: produce,
    buildIndex: produce,
    tasks: produce,
    report: produce,
    nodeStarted: async () => {},
    nodeEnded: async () => {},
    trackRunStarted: async () => {},
    trackNode: async ({ outcome }: { outcome: NodeOutcome }) => void tracked.push(outcome),
    trackArm: async () => {},
    finishRun: async ({ run, status }: { run: string; status: string }) => {
      finished[run] = status;
    },
  };
  const worker = await Worker.create({
    connection: temporal.nativeConnection,
    taskQueue: 'exp-cpu',
    workflowBundle,
    activities,
    maxHeartbeatThrottleInterval: '200ms',
  });
  const running = worker.run();
  const start = (run: string, plan: string, options: { fail_fast?: boolean } = {}) =>
    temporal.client.workflow.start('run', {
      workflowId: `run/${run}`,
      taskQueue: 'exp-cpu',
      args: [{ run, plan, max_parallel: 2, ...options }],
    });
  const stop = async () => {
    worker.shutdown();
    await running;
  };
  return { executed, executedKeys, published, tracked, finished, start, stop };
}

const node = (id: string, kind: NodeSkeleton['kind'], key: string, inputs: string[] = []) => ({
  id,
  kind,
  key,
  inputs,
});

/** Cancellable like a real activity: heartbeats carry the cancellation back. */
async function work(milliseconds: number): Promise<void> {
  const { heartbeat, cancelled } = Context.current();
  const timer = setInterval(() => heartbeat(), 100);
  try {
    await Promise.race([delay(milliseconds), cancelled]);
  } finally {
    clearInterval(timer);
  }
}

const WAIT = { timeout: 30_000, interval: 100 };

/** Until so many subscribers of a node stand in its history. */
const subscribed = (key: string, count: number) =>
  vi.waitFor(async () => {
    const { events } = await temporal.client.workflow.getHandle(`node/${key}`).fetchHistory();
    const signals = events?.filter(
      ({ workflowExecutionSignaledEventAttributes: signal }) => signal?.signalName === 'subscribe',
    );
    expect(signals).toHaveLength(count);
  }, WAIT);

test('nodes run when their inputs are done, and a second run finds them all', async () => {
  const plan = [
    node('corpus', 'corpus', 'w1-c'),
    node('index', 'index', 'w1-i', ['corpus']),
    node('tasks', 'tasks', 'w1-t', ['corpus']),
  ];
  const { executed, tracked, start, stop } = await stage({ p: plan }, async () => {});
  try {
    expect(await (await start('w1', 'p')).result()).toEqual({ status: 'done' });
    expect(executed[0]).toBe('corpus');
    expect([...executed].sort()).toEqual(['corpus', 'index', 'tasks']);
    expect(await (await start('w1-again', 'p')).result()).toEqual({ status: 'done' });
    expect(executed).toHaveLength(3);
    expect(tracked.slice(3).every(({ reused }) => reused)).toBe(true);
  } finally {
    await stop();
  }
});

test('a failed node stops what needs it and nothing else, and the run says failed', async () => {
  const plan = [
    node('corpus', 'corpus', 'w2-c'),
    node('index', 'index', 'w2-i', ['corpus']),
    node('tasks', 'tasks', 'w2-t', ['corpus']),
    node('report', 'report', 'w2-r', ['index']),
  ];
  const { executed, tracked, finished, start, stop } = await stage({ p: plan }, async ({ id }) => {
    if (id === 'index') throw ApplicationFailure.nonRetryable('index broke', 'INDEX_FINGERPRINT');
  });
  try {
    expect(await (await start('w2', 'p')).result()).toEqual({ status: 'failed' });
    expect([...executed].sort()).toEqual(['corpus', 'index', 'tasks']);
    const statuses = Object.fromEntries(tracked.map(({ id, status, error }) => [id, error?.code ?? status]));
    expect(statuses).toEqual({ corpus: 'done', index: 'INDEX_FINGERPRINT', tasks: 'done', report: 'skipped' });
    expect(finished).toEqual({ w2: 'failed' });
  } finally {
    await stop();
  }
});

test('two runs share one node; the one that came first is cancelled, and the node goes on for the other', async () => {
  const plan = [node('corpus', 'corpus', 'w3-c')];
  const { executed, finished, start, stop } = await stage({ p: plan }, async () => work(10_000));
  try {
    const first = await start('w3-a', 'p');
    await subscribed('w3-c', 1);
    const second = await start('w3-b', 'p');
    await subscribed('w3-c', 2);
    await first.cancel();
    expect(await first.result()).toEqual({ status: 'cancelled' });
    expect(await second.result()).toEqual({ status: 'done' });
    expect(executed).toEqual(['corpus']);
    expect(finished).toEqual({ 'w3-a': 'cancelled', 'w3-b': 'done' });
  } finally {
    await stop();
  }
});

test('a node is cancelled when its last subscriber leaves', async () => {
  const plan = [node('corpus', 'corpus', 'w4-c')];
  const { executed, start, stop } = await stage({ p: plan }, async () => work(60_000));
  try {
    const only = await start('w4', 'p');
    await vi.waitFor(() => expect(executed).toHaveLength(1), WAIT);
    await only.cancel();
    expect(await only.result()).toEqual({ status: 'cancelled' });
    const ended = (await temporal.client.workflow.getHandle('node/w4-c').result()) as NodeOutcome;
    expect(ended.status).toBe('cancelled');
  } finally {
    await stop();
  }
});

test.each([
  [true, ['failed', 'cancelled', 'cancelled']],
  [false, ['failed', 'done', 'done']],
])('an arm fails with fail_fast %s: its neighbours and those that wait are %j', async (fail_fast, expected) => {
  const name = `w6-${fail_fast}`;
  const arms = {
    broken: [node('tasks', 'tasks', `${name}-t`)],
    slow: [node('index', 'index', `${name}-i`)],
    waiting: [node('report', 'report', `${name}-r`)],
  };
  const { executed, finished, start, stop } = await stage({ p: arms }, async ({ id }) => {
    if (id === 'index') return work(fail_fast ? 60_000 : 500);
    if (id === 'tasks') {
      await vi.waitFor(() => expect(executed).toContain('index'), WAIT);
      throw ApplicationFailure.nonRetryable('tasks broke', 'TASKS');
    }
  });
  try {
    const run = await start(name, 'p', { fail_fast });
    expect(await run.result()).toEqual({ status: 'failed' });
    const { arms: ended } = await run.query<{ arms: { status: string }[] }>('state');
    expect(ended.map(({ status }) => status)).toEqual(expected);
    expect(executed.includes('report')).toBe(!fail_fast);
    expect(finished).toEqual({ [name]: 'failed' });
  } finally {
    await stop();
  }
});

test('a gate that is not met ends the run as gate_failed', async () => {
  const { start, stop } = await stage({ p: [node('tasks', 'tasks', 'w5-t')] }, async () => {
    throw ApplicationFailure.nonRetryable('2 never, 0 sometimes, 1 always', 'TOO_FEW_SOLVABLE');
  });
  try {
    expect(await (await start('w5', 'p')).result()).toEqual({ status: 'gate_failed' });
  } finally {
    await stop();
  }
});

const PROPERTY_SPECS = 2;
const NOT_OF_AN_ARM = /^(name|description|tracking)/;

test(`what ran is what was planned: ${PROPERTY_SPECS} random specs with three arms, and again with one leaf changed`, async () => {
  const plans: Record<string, Record<string, WrittenNode[]>> = {};
  const { executedKeys, published, start, stop } = await stage(plans, async () => {});
  const found: ArtifactLookup = async (keys) =>
    new Map(
      keys
        .filter((key) => published.has(key))
        .map((key) => [key, { generation: 1, digest: key, made_with: {}, created_at: '', inputs: [], is_live: true }]),
    );
  /** Keys the plan says will be made, and those that were. */
  const planAndRun = async (run: string, spec: Fields): Promise<[planned: string[], ran: string[]]> => {
    const { plan, problems } = await planFile(join(folderWith({ 'spec.yaml': stringify(spec) }), 'spec.yaml'));
    if (plan === null) throw new Error(`${run}: ${JSON.stringify(problems)}`);
    const actions = await decideActions(plan.arms, found);
    const keyOf = new Map(
      plan.arms.flatMap((arm) => arm.nodes.map(({ id, key }) => [`${arm.name}/${id}`, key] as const)),
    );
    const planned = actions.flatMap(({ arm, id, action }) =>
      action === 'run' ? [keyOf.get(`${arm}/${id}`) as string] : [],
    );
    // What a node does is left out here, so every kind may be the same one.
    plans[run] = Object.fromEntries(
      plan.arms.map(({ name, nodes }) => [
        name,
        nodes.map(({ id, key, inputs }) => node(id, 'corpus', key, [...inputs])),
      ]),
    );
    const before = executedKeys.length;
    expect(await (await start(run, run)).result()).toEqual({ status: 'done' });
    return [planned.sort(), executedKeys.slice(before).sort()];
  };
  try {
    for (let seed = 1; seed <= PROPERTY_SPECS; seed++) {
      const random = new Random(20261121 + seed);
      const changes = Array.from({ length: 20 }, () => randomChange(random));
      const [first, second] = changes.filter(([path]) => !NOT_OF_AN_ARM.test(path)) as [
        [string, Value],
        [string, Value],
      ];
      const ablations = { control: {}, first: Object.fromEntries([first]), second: Object.fromEntries([second]) };
      const spec = { ...randomSpec(random), ablations };
      const [planned, ran] = await planAndRun(`property-${seed}`, spec);
      expect({ seed, ran }).toEqual({ seed, ran: planned });
      const [plannedNext, ranNext] = await planAndRun(`property-${seed}-changed`, withOneChange(spec, random));
      expect({ seed, ran: ranNext }).toEqual({ seed, ran: plannedNext });
    }
  } finally {
    await stop();
  }
}, 240_000);
