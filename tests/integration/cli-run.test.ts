import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import type { CommandIo } from '../../cli/command.ts';
import { followRun } from '../../cli/follow-run.ts';
import { connectStack, type Stack } from '../../cli/open-stack.ts';
import { readHistory } from '../../cli/run-history.ts';
import { allNodes, findRun, type NodeState, RunReader, workflowPhase } from '../../cli/run-state.ts';
import { newRunId, resumeRun, startRun } from '../../cli/start-run.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Connections } from '../../services/connections.ts';
import { freshSalt, publishBenchmark, startToyWorker, type ToyNode, type ToyWorker, toyPlan } from './toy-run.ts';
import { startPostgres, startTemporal, type TestService } from './toy-services.ts';

let postgres: TestService;
let temporal: TestService;
let addresses: Connections;
let stack: Stack;
let worker: ToyWorker | undefined;
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-cli-'));
  postgres = await startPostgres();
  temporal = await startTemporal();
  addresses = {
    temporal: { address: temporal.address, namespace: 'default', queuePrefix: 'exp' },
    postgres: { url: postgres.address },
    milvus: { address: '127.0.0.1:1' },
    mlflow: { url: 'http://127.0.0.1:1' },
    engines: [],
    artifacts: { kind: 'dir', path: join(folder, 'artifacts') },
  };
  stack = (await connectStack(addresses)) as Stack;
});

afterEach(async () => {
  await worker?.stop();
  worker = undefined;
});

afterAll(async () => {
  await stack?.close();
  await Promise.all([postgres?.stop(), temporal?.stop()]);
  await rm(folder, { recursive: true, force: true });
});

/** A chain of two nodes that nobody else has. */
function chain(...changes: Partial<ToyNode>[]): ToyNode[] {
  const salt = freshSalt();
  const ids = ['corpus', 'index', 'tasks'];
  return changes.map((change, at) => ({
    id: ids[at] as string,
    inputs: at > 0 ? [ids[at - 1] as string] : [],
    salt,
    ...change,
  }));
}

function collectIo(signal: AbortSignal = new AbortController().signal) {
  const lines: string[] = [];
  const io: CommandIo = {
    out: (text) => void lines.push(text),
    err: (text) => void lines.push(text),
    isTTY: false,
    env: {},
    signal,
  };
  return { io, lines };
}

/** Follow to the end as `exp watch` in a pipe does. */
async function follow(run: string, { io, lines } = collectIo()) {
  const opened = (await connectStack(addresses)) as Stack;
  try {
    const followed = await followRun({
      run,
      stack: opened,
      io,
      reopen: () => connectStack(addresses),
      say: io.out,
      live: false,
    });
    return { ...followed, lines };
  } finally {
    await opened.close();
  }
}

/** Wait until a node of a run is at work. */
async function untilRunning(run: string): Promise<NodeState> {
  const reader = new RunReader(stack, run);
  return vi.waitFor(
    async () => {
      const node = allNodes(await reader.read()).find(({ status, started_at }) => status === 'running' && started_at);
      expect(node).toBeDefined();
      return node as NodeState;
    },
    { timeout: 30_000, interval: 200 },
  );
}

/** An arm shows a node as running when it asks for it; here the node has heard of so many. */
async function untilSubscribed(runs: number, plan: Plan): Promise<void> {
  const handle = (await stack.temporal()).workflow.getHandle(`node/${plan.arms[0]?.nodes[0]?.key}`);
  await vi.waitFor(
    async () => {
      const { events } = await handle.fetchHistory();
      expect(events?.filter((event) => event.workflowExecutionSignaledEventAttributes)).toHaveLength(runs);
    },
    { timeout: 30_000, interval: 200 },
  );
}

test('fifty simultaneous submits give one run, and all fifty get its id', async () => {
  const plan = toyPlan('fifty', { control: chain({}, {}) }, { run: freshSalt() });
  worker = await startToyWorker(stack);
  const callers = await Promise.all(Array.from({ length: 50 }, () => connectStack(addresses)));
  try {
    const started = await Promise.all(callers.map((caller) => startRun(caller as Stack, plan)));

    expect(new Set(started.map(({ run }) => run)).size).toBe(1);
    expect(started.filter(({ created }) => created)).toHaveLength(1);
    const { rows } = await stack.pool.query('select id from runs where run_key = $1', [plan.run_key]);
    expect(rows).toHaveLength(1);
    const { exitCode } = await follow(started[0]?.run as string);
    expect(exitCode).toBe(0);
    expect(Object.fromEntries(worker.begun)).toEqual({ corpus: 1, index: 1 });
  } finally {
    await Promise.all(callers.map((caller) => caller?.close()));
  }
});

test('a submit that died between its row and its workflow is healed by the next one', async () => {
  const plan = toyPlan('healed', { control: chain({}) });
  const blob = await stack.store.putJson(plan);
  const id = newRunId(plan.name, new Date());
  await stack.pool.query('insert into runs (id, run_key, name, profile, plan_blob) values ($1, $2, $3, $4, $5)', [
    id,
    plan.run_key,
    plan.name,
    'local',
    blob,
  ]);
  worker = await startToyWorker(stack);

  expect(await startRun(stack, plan)).toEqual({ run: id, created: false });
  expect((await follow(id)).exitCode).toBe(0);
});

test('after a run has ended, a submit of the same plan makes a new run that reuses', async () => {
  const plan = toyPlan('again', { control: chain({}, {}) });
  worker = await startToyWorker(stack);
  const first = await startRun(stack, plan);
  await follow(first.run);
  const second = await startRun(stack, plan);

  expect(second.created).toBe(true);
  expect(second.run).not.toBe(first.run);
  const { state, lines } = await follow(second.run);
  expect(allNodes(state!).map(({ status }) => status)).toEqual(['reused', 'reused']);
  expect(lines.join('\n')).toMatch(/corpus {2}corpus +reused/);
  expect(Object.fromEntries(worker.begun)).toEqual({ corpus: 1, index: 1 });
});

test('a failing node gives exit 1, its error in the lines, and its dependants skipped; resume reuses the rest', async () => {
  const nodes = chain({}, { ends: 'failure' }, {});
  const plan = toyPlan('failing', { control: nodes });
  worker = await startToyWorker(stack);
  const { run } = await startRun(stack, plan);
  const { exitCode, lines, state } = await follow(run);

  expect(exitCode).toBe(1);
  expect(lines.join('\n')).toContain('DATA: the toy has no data');
  expect(allNodes(state!).map(({ status }) => status)).toEqual(['done', 'failed', 'skipped']);

  const resumed = await resumeRun(stack, await findRun(stack.pool, run));
  expect(resumed).toEqual({ run, created: true });
  const again = await follow(run);
  expect(again.exitCode).toBe(1);
  expect(allNodes(again.state!)[0]?.status).toBe('reused');
  expect(worker.begun.get('corpus')).toBe(1);
  expect(worker.begun.get('index')).toBe(2);
});

test('resume of a run in which one arm failed leaves the arm that is done untouched', async () => {
  const [shared] = chain({}) as [ToyNode];
  const own = (id: string, change: Partial<ToyNode>): ToyNode => ({
    ...shared,
    id,
    kind: 'tasks',
    inputs: ['corpus'],
    ...change,
  });
  const plan = toyPlan('one_arm_failed', {
    good: [shared, own('good_tasks', {})],
    bad: [shared, own('bad_tasks', { ends: 'failure' })],
  });
  worker = await startToyWorker(stack);
  const { run } = await startRun(stack, plan);
  expect((await follow(run)).exitCode).toBe(1);
  const client = await stack.temporal();
  const executionOf = async (arm: string) => (await client.workflow.getHandle(`arm/${run}/${arm}`).describe()).runId;
  const before = { good: await executionOf('good'), bad: await executionOf('bad') };

  await resumeRun(stack, await findRun(stack.pool, run));
  const { state, lines } = await follow(run);

  expect(await executionOf('good')).toBe(before.good);
  expect(await executionOf('bad')).not.toBe(before.bad);
  expect(Object.fromEntries(worker.begun)).toEqual({ corpus: 1, good_tasks: 1, bad_tasks: 2 });
  expect(state?.arms.map(({ arm, status }) => [arm, status])).toEqual([
    ['good', 'done'],
    ['bad', 'failed'],
  ]);
  expect(state?.arms[0]?.nodes.find(({ id }) => id === 'good_tasks')?.status).toBe('done');
  expect(lines.join('\n')).toMatch(/arm bad failed/);
});

test('an arm that has ended is asked once for its last words: each answer would replay all of it', async () => {
  worker = await startToyWorker(stack);
  const plan = toyPlan('short_and_long', { short: chain({}), long: chain({ ms: 8_000, steps: 8 }) });
  const { run } = await startRun(stack, plan);
  const asked: string[] = [];
  const { workflow } = await stack.temporal();
  const getHandle = workflow.getHandle.bind(workflow);
  const spy = vi.spyOn(workflow, 'getHandle').mockImplementation((id, ...more) => {
    asked.push(id);
    return getHandle(id, ...more);
  });
  try {
    const reader = new RunReader(stack, run);
    const shortOf = async () => (await reader.read()).arms[0];
    await vi.waitFor(async () => expect((await shortOf())?.nodes[0]?.status).toBe('done'), { timeout: 30_000 });
    asked.length = 0;
    for (let looks = 0; looks < 5; looks++) {
      await sleep(1_100); // answers are asked for once a second at most
      expect((await shortOf())?.status).toBe('done');
    }
    expect(asked.filter((id) => id === `arm/${run}/long`).length).toBeGreaterThan(2);
    expect(asked.filter((id) => id === `arm/${run}/short`).length).toBeLessThan(2);
  } finally {
    spy.mockRestore();
  }
  expect((await follow(run)).exitCode).toBe(0);
});

test('a missed gate is exit 3', async () => {
  worker = await startToyWorker(stack);
  const { run } = await startRun(stack, toyPlan('gate', { control: chain({ ends: 'gate' }) }));
  const { exitCode, lines } = await follow(run);
  expect(exitCode).toBe(3);
  expect(lines.join('\n')).toContain('never 10, sometimes 0, always 2');
});

test('the history tells which activity was tried again and why', async () => {
  const plan = toyPlan('retried', { control: chain({ ends: 'outage_once' }) });
  worker = await startToyWorker(stack);
  const { run } = await startRun(stack, plan);
  expect((await follow(run)).exitCode).toBe(0);

  const { created_at: since } = await findRun(stack.pool, run);
  const entries = await readHistory(await stack.temporal(), { run, since, plan, all: false });
  const told = entries.map(({ where, text }) => `${where}: ${text}`);
  expect(told[0]).toBe('run: begun');
  expect(told.some((line) => /^corpus: corpus done in .*attempt 2 after: .*UNAVAILABLE/.test(line))).toBe(true);
  expect(told.at(-1)).toBe('run: ended');
});

test('Ctrl-C detaches: the follower leaves and the run goes on', async () => {
  worker = await startToyWorker(stack);
  const { run } = await startRun(stack, toyPlan('detach', { control: chain({ ms: 4_000, steps: 8 }) }));
  const interrupt = new AbortController();
  const following = follow(run, collectIo(interrupt.signal));
  await untilRunning(run);
  interrupt.abort();

  const { exitCode, lines } = await following;
  expect(exitCode).toBe(130);
  expect(lines.at(-1)).toContain(`exp watch ${run}`);
  expect((await findRun(stack.pool, run)).status).toBe('running');
  expect((await follow(run)).exitCode).toBe(0);
});

test('a node that another run began first is shared, and one run leaving does not stop it', async () => {
  const node = chain({ ms: 8_000, steps: 16 });
  worker = await startToyWorker(stack);
  const plan = toyPlan('sharer_a', { control: node });
  const first = await startRun(stack, plan);
  await untilRunning(first.run);
  const second = await startRun(stack, toyPlan('sharer_b', { control: node }));

  expect(await untilRunning(second.run)).toMatchObject({ id: 'corpus', shared: true });
  await untilSubscribed(2, plan);
  await (await stack.temporal()).workflow.getHandle(`run/${first.run}`).cancel();
  expect((await follow(second.run)).exitCode).toBe(0);
  expect((await findRun(stack.pool, first.run)).status).toBe('cancelled');
  expect(worker.begun.get('corpus')).toBe(1);
});

test('a run whose workflow was terminated is told as failed, and resume goes on with it', async () => {
  worker = await startToyWorker(stack);
  const { run } = await startRun(stack, toyPlan('terminated', { control: chain({ ms: 3_000, steps: 6 }) }));
  const client = await stack.temporal();
  await untilRunning(run);
  await client.workflow.getHandle(`run/${run}`).terminate('by hand');
  const { exitCode, state } = await follow(run);

  expect(exitCode).toBe(1);
  expect(state?.trouble).toContain(`exp resume ${run}`);
  await resumeRun(stack, await findRun(stack.pool, run));
  expect((await follow(run)).exitCode).toBe(0);
  expect(await workflowPhase(client, run)).toBe('closed');
});

test('following survives PostgreSQL and Temporal being killed and started again', async () => {
  worker = await startToyWorker(stack);
  const { run } = await startRun(stack, toyPlan('outage', { control: chain({ ms: 12_000, steps: 24 }, {}) }));
  const collected = collectIo();
  const following = follow(run, collected);
  await untilRunning(run);
  await vi.waitFor(() => expect(collected.lines.join('\n')).toContain('corpus running'), { timeout: 20_000 });
  await Promise.all([postgres.kill(), temporal.kill()]);
  await sleep(3_000);
  await Promise.all([postgres.restart(), temporal.restart()]);

  const { exitCode, lines } = await following;
  const text = lines.join('\n');
  expect(text).toContain('reconnecting');
  expect(text).toContain('connected again');
  expect(exitCode).toBe(0);
});

test('the end of a run shows one table of its benchmarks', async () => {
  const salt = freshSalt();
  const nodes: ToyNode[] = ['base', 'stage1'].map((after) => ({ id: `held_out.${after}`, kind: 'benchmark', salt }));
  const plan = toyPlan('table', { control: nodes });
  const interval = (value: number) => ({ value, low: value - 0.1, high: value + 0.1 });
  for (const [at, after] of ['base', 'stage1'].entries()) {
    await publishBenchmark(stack, plan.arms[0]?.nodes[at]?.key as string, {
      benchmark: 'held_out',
      after,
      questions: 24,
      samples: 2,
      protocol: {},
      answer_in_observation: 0.5,
      groups: {},
      unfinished: 0,
      masked: 0,
      tool_use: {},
      results: { avg_at_2: interval(0.1 + at * 0.3) },
      baselines: { closed_book: interval(0.125) },
    });
  }
  worker = await startToyWorker(stack);
  const { run } = await startRun(stack, plan);
  const text = (await follow(run)).lines.join('\n');
  expect(text).toMatch(/base +10\.0 \[0\.0, 20\.0\]/);
  expect(text).toMatch(/stage1 +40\.0 \[30\.0, 50\.0\]/);
  expect(text).toMatch(/closed book +12\.5/);
});

test('an id may be shortened while it is unambiguous; `latest` is the newest', async () => {
  const { rows } = await stack.pool.query<{ id: string }>('select id from runs order by created_at desc limit 1');
  const newest = String(rows[0]?.id);
  expect((await findRun(stack.pool, 'latest')).id).toBe(newest);
  expect((await findRun(stack.pool, newest.slice(0, -2))).id).toBe(newest);
  await expect(findRun(stack.pool, 'again-')).rejects.toThrow('RUN_AMBIGUOUS');
  await expect(findRun(stack.pool, 'nosuch')).rejects.toThrow('RUN_UNKNOWN');
});
