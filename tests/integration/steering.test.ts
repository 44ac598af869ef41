import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { readStanding, SpendLedger } from '../../activities/adapters/spend-ledger.ts';
import { NOTHING } from '../../activities/budget.ts';
import type { Command, CommandIo } from '../../cli/command.ts';
import { command as approve } from '../../cli/commands/approve.ts';
import { command as budget } from '../../cli/commands/budget.ts';
import { command as goOn } from '../../cli/commands/continue.ts';
import { command as pause } from '../../cli/commands/pause.ts';
import { command as status } from '../../cli/commands/status.ts';
import { followRun } from '../../cli/follow-run.ts';
import { openProfile, openStack, type Stack } from '../../cli/open-stack.ts';
import { findRun } from '../../cli/run-state.ts';
import { resumeRun, startRun } from '../../cli/start-run.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { PlanGate } from '../../schemas/plan.ts';
import { writeProfile } from './toy-profile.ts';
import { freshSalt, startToyWorker, type ToyNode, type ToyWorker, toyPlan } from './toy-run.ts';
import { startPostgres, startTemporal, type TestService } from './toy-services.ts';

/** What a person may say to a run while it works: real workflows, PostgreSQL and Temporal; only the work is small. */
let folder: string;
let postgres: TestService;
let temporal: TestService;
let profile: string;
let stack: Stack;
let worker: ToyWorker;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-steering-'));
  process.env['EXP_HOME'] = join(folder, 'home');
  postgres = await startPostgres();
  temporal = await startTemporal();
  profile = writeProfile(folder, { postgres: postgres.address, temporal: temporal.address });
  stack = (await openStack(openProfile(profile).profile)) as Stack;
  worker = await startToyWorker(stack);
});

beforeEach(() => {
  worker.begun.clear();
  worker.sampled.length = 0;
  worker.released = 0;
});

afterAll(async () => {
  await worker?.stop();
  await stack?.close();
  await Promise.all([postgres?.stop(), temporal?.stop()]);
  await rm(folder, { recursive: true, force: true });
});

function collectIo() {
  const lines: string[] = [];
  const out = (text: string) => void lines.push(text);
  const io: CommandIo = { out, err: out, isTTY: false, env: {}, signal: new AbortController().signal };
  return { io, lines };
}

/** One call of a verb: its exit code, or the code of its error, and what it said. */
async function exp(command: Command, ...argv: string[]): Promise<{ ended: number | string; text: string }> {
  const { io, lines } = collectIo();
  try {
    return { ended: await command.run([...argv, '--profile', profile], io), text: lines.join('\n') };
  } catch (error) {
    if (!(error instanceof ExpError)) throw error;
    return { ended: error.code, text: error.message };
  }
}

interface StatusJson {
  status: string;
  nodes: { id: string; status: string; error?: string }[];
  paused?: { reason: string };
  spend: { spent: { tool_calls: number }; reserved: { tool_calls: number }; bounds: object };
  gates?: { name: string; status: string; value: number | null; reason: string }[];
}

const statusOf = async (run: string): Promise<StatusJson> =>
  JSON.parse((await exp(status, run, '--json')).text) as StatusJson;

const until = (claim: () => Promise<void> | void) => vi.waitFor(claim, { timeout: 30_000, interval: 100 });

const untilNode = (run: string, id: string, wanted: string) =>
  until(async () => {
    expect((await statusOf(run)).nodes.find((node) => node.id === id)?.status).toBe(wanted);
  });

async function follow(run: string) {
  const { io, lines } = collectIo();
  const { exitCode } = await followRun({ run, stack, io, reopen: async () => null, say: io.out, live: false });
  return { exitCode, text: lines.join('\n') };
}

const rolling = (change: Partial<ToyNode> = {}): ToyNode[] => [
  { id: 'look', kind: 'profile', batches: 6, ms: 300, salt: freshSalt(), ...change },
];

test('a paused run finishes the batches it is at, leaves the engine, outlives its worker, and goes on from there', async () => {
  const { run } = await startRun(stack, toyPlan('paused', { main: rolling() }));
  await until(() => expect(worker.sampled.length).toBeGreaterThan(0));
  expect((await exp(pause, run, '--reason', 'lunch')).ended).toBe(0);
  await untilNode(run, 'look', 'paused');
  expect(await statusOf(run)).toMatchObject({ status: 'running', paused: { reason: 'lunch' } });
  const before = worker.sampled.length;
  expect(before).toBeLessThan(6);
  expect(worker.released).toBe(1);

  await worker.stop();
  worker = await startToyWorker(stack);
  await sleep(1_000);
  expect(worker.sampled).toEqual([]);
  await until(async () => expect((await statusOf(run)).paused?.reason).toBe('lunch'));
  expect((await exp(status, run)).text).toMatch(/paused since .*: lunch\nto go on: exp continue/);

  expect((await exp(goOn, run)).text).toBe(`${run} goes on`);
  expect((await follow(run)).exitCode).toBe(0);
  expect(worker.sampled).toHaveLength(6 - before);
  expect((await exp(pause, run)).ended).toBe('RUN_ENDED');
});

test('a paused run begins no node', async () => {
  const salt = freshSalt();
  const nodes: ToyNode[] = [
    { id: 'corpus', ms: 1_500, steps: 10, salt },
    { id: 'index', kind: 'index', inputs: ['corpus'], salt },
  ];
  const { run } = await startRun(stack, toyPlan('no_node', { main: nodes }));
  await untilNode(run, 'corpus', 'running');
  await exp(pause, run);
  await untilNode(run, 'corpus', 'done');
  await sleep(500);
  expect(worker.begun.get('index')).toBeUndefined();
  await exp(goOn, run);
  expect((await follow(run)).exitCode).toBe(0);
});

test('a node that another run waits for goes on, however long one run is paused', async () => {
  const nodes = rolling({ batches: 8 });
  const first = await startRun(stack, toyPlan('pauses', { main: nodes }));
  const second = await startRun(stack, toyPlan('does_not', { main: nodes }));
  for (const { run } of [first, second]) await untilNode(run, 'look', 'running');
  await exp(pause, first.run);
  expect((await follow(second.run)).exitCode).toBe(0);
  expect(worker.sampled).toHaveLength(8);
  await exp(goOn, first.run);
  expect((await follow(first.run)).exitCode).toBe(0);
});

const METRIC = 'eval/check/avg_at_2';

/** stage1, its benchmark, and a stage that starts from stage1 behind a gate. */
function gated(value: number, change: Partial<PlanGate> = {}) {
  const salt = freshSalt();
  const nodes: ToyNode[] = [
    { id: 'stage1', kind: 'tasks', salt },
    { id: 'check.stage1', kind: 'corpus', inputs: ['stage1'], metrics: { [METRIC]: value }, salt },
    { id: 'stage2', kind: 'index', inputs: ['stage1'], salt },
    { id: 'report', kind: 'report', inputs: ['check.stage1'], salt },
  ];
  const gate: PlanGate = {
    name: 'stage1',
    metric: { name: METRIC, benchmark: 'check.stage1', at_least: 0.3, at_most: null },
    on_fail: 'stop',
    approve: false,
    blocks: ['stage2'],
    ...change,
  };
  return toyPlan('gated', { main: nodes }, { gates: [gate], run: salt });
}

test('a gate that holds lets the next stage begin', async () => {
  const { run } = await startRun(stack, gated(0.31));
  expect((await follow(run)).exitCode).toBe(0);
  expect((await statusOf(run)).gates).toEqual([
    { name: 'stage1', status: 'passed', metric: METRIC, value: 0.31, reason: `${METRIC} is 0.31` },
  ]);
});

test('a gate that does not hold is exit 3; what starts from its stage is skipped, the rest is done', async () => {
  const { run } = await startRun(stack, gated(0.21));
  const { exitCode, text } = await follow(run);
  expect(exitCode).toBe(3);
  expect(text).toContain(`gate after stage1 failed; ${METRIC} is 0.21, below 0.3`);
  expect(worker.begun.get('stage2')).toBeUndefined();
  const { nodes, ...state } = await statusOf(run);
  expect(state.status).toBe('gate_failed');
  expect(Object.fromEntries(nodes.map((node) => [node.id, node.status]))).toEqual({
    stage1: 'done',
    'check.stage1': 'done',
    stage2: 'skipped',
    report: 'done',
  });
  expect((await findRun(stack.pool, run)).status).toBe('gate_failed');
});

test('a gate that asks waits, across a restart, for a word; approved, it lets the next stage begin', async () => {
  const { run } = await startRun(stack, gated(0.21, { on_fail: 'ask' }));
  await until(async () => expect((await statusOf(run)).gates?.[0]?.status).toBe('asks'));
  await worker.stop();
  worker = await startToyWorker(stack);
  expect((await exp(status, run)).text).toContain(
    `gate after stage1 waits for approval: exp approve ${run} stage1; ${METRIC} is 0.21, below 0.3`,
  );
  expect((await exp(approve, run, 'stage7')).text).toContain('there is no gate stage7; there is stage1');
  expect((await exp(approve, run, 'stage1')).ended).toBe(0);
  expect((await follow(run)).exitCode).toBe(0);
  expect(worker.begun.get('stage2')).toBe(1);
});

test('a gate that is rejected is exit 3, also where the metric held', async () => {
  const { run } = await startRun(stack, gated(0.9, { approve: true }));
  await until(async () => expect((await statusOf(run)).gates?.[0]?.status).toBe('asks'));
  expect((await exp(approve, run, 'stage1', '--reject')).ended).toBe(0);
  const { exitCode, text } = await follow(run);
  expect(exitCode).toBe(3);
  expect(text).toContain(`gate after stage1 failed; ${METRIC} is 0.9; rejected`);
  expect(worker.begun.get('stage2')).toBeUndefined();
});

const calling = (change: Partial<ToyNode> = {}) => rolling({ ms: 100, calls: { taken: 20, most: 40 }, ...change });

test('a run is paused before it can pass its budget, across restarts, and goes on when the bound is raised', async () => {
  const plan = toyPlan('bounded', { main: calling() }, { budget: { tool_calls: 100, on_exceed: 'pause' } });
  const { run } = await startRun(stack, plan);
  // After 80 calls the next batch might end at 120.
  const reason = 'budget: tool_calls 80 of 100, the next batch may take 40';
  await until(async () => expect((await statusOf(run)).paused?.reason).toBe(reason));
  await untilNode(run, 'look', 'paused');
  expect(worker.sampled).toHaveLength(4);
  expect((await exp(status, run)).text).toContain(`to go on: exp budget ${run} tool_calls=N`);

  await worker.stop();
  worker = await startToyWorker(stack);
  expect((await exp(goOn, run)).ended).toBe(0);
  await sleep(500);
  await until(async () => expect((await statusOf(run)).paused?.reason).toBe(reason));
  expect(worker.sampled).toEqual([]);

  expect((await exp(budget, run, 'tool_calls=200')).text).toMatch(/spent 80 of 200 tool calls.*; it goes on$/);
  expect((await follow(run)).exitCode).toBe(0);
  expect(worker.sampled).toHaveLength(2);
  expect((await statusOf(run)).spend).toMatchObject({
    spent: { tool_calls: 120 },
    reserved: { tool_calls: 0 },
    bounds: { tool_calls: 200 },
  });
  expect((await exp(budget, run, 'tool_cals=1')).ended).toBe('USAGE');
});

test('on_exceed: stop ends the run as `budget`, exit 4, with what was finished kept', async () => {
  const plan = toyPlan('stopped', { main: calling() }, { budget: { tool_calls: 50, on_exceed: 'stop' } });
  const { run } = await startRun(stack, plan);
  const { exitCode } = await follow(run);
  expect(exitCode).toBe(4);
  expect(worker.sampled).toHaveLength(1);
  expect((await statusOf(run)).status).toBe('budget');
  expect((await exp(budget, run, 'tool_calls=500')).ended).toBe(0);
  await resumeRun(stack, await findRun(stack.pool, run));
  expect((await follow(run)).exitCode).toBe(0);
  expect(worker.sampled).toHaveLength(6);
  expect((await statusOf(run)).spend.spent.tool_calls).toBe(120);
});

test('a run without room does not stop a node that another run waits for, and is not charged beyond its bound', async () => {
  const nodes = calling({ ms: 300 });
  const poor = await startRun(
    stack,
    toyPlan('poor', { main: nodes }, { budget: { tool_calls: 50, on_exceed: 'pause' } }),
  );
  const rich = await startRun(stack, toyPlan('rich', { main: nodes }));
  expect((await follow(rich.run)).exitCode).toBe(0);
  expect((await follow(poor.run)).exitCode).toBe(0);
  expect(worker.sampled).toHaveLength(6);
  expect((await statusOf(poor.run)).spend.spent.tool_calls).toBeLessThanOrEqual(50);
  expect((await statusOf(rich.run)).spend.spent.tool_calls).toBeGreaterThanOrEqual(100);
});

test('work that is done twice is counted once', async () => {
  const { run } = await startRun(stack, toyPlan('twice', { main: calling({ batches: 1, ends: 'outage_once' }) }));
  expect((await follow(run)).exitCode).toBe(0);
  expect(worker.sampled).toHaveLength(2);
  expect((await statusOf(run)).spend.spent.tool_calls).toBe(20);
});

/** A run that waits for a node of which no workflow knows: what remains of one whose worker was killed. */
async function waitingRun(key: string, bounds: object) {
  const plan = toyPlan('killed', { main: [] }, { budget: bounds, run: key });
  const row = [`killed-${key}`, plan.run_key, plan.name, 'toy', await stack.store.putJson(plan)];
  await stack.pool.query('insert into runs (id, run_key, name, profile, plan_blob) values ($1, $2, $3, $4, $5)', row);
  await stack.pool.query(
    `insert into subscriptions (node_key, subscriber, run) values ($1, 'arm/' || $2 || '/main', $2)`,
    [key, row[0]],
  );
  const prices = { currency: 'USD', gpu_hour: 0, cpu_hour: 0, million_tokens: 0, thousand_tool_calls: 0 };
  return {
    run: row[0] as string,
    ledger: new SpendLedger({ pool: stack.pool, plans: { load: async () => plan }, prices }),
  };
}

test('what a killed worker had reserved stays reserved until its unit is done again, once', async () => {
  const key = freshSalt();
  const { run, ledger } = await waitingRun(key, { tool_calls: 50 });
  const most = { ...NOTHING, tool_calls: 40 };
  expect(await ledger.admit(key, 'a', most)).toEqual({ kind: 'admitted' });
  await ledger.report(key, 'a', { tokens: 0, tool_calls: 7 }); // and then it was killed
  expect(await ledger.admit(key, 'b', most)).toEqual({ kind: 'wait' });
  expect(await ledger.admit(key, 'a', most)).toEqual({ kind: 'admitted' });
  await ledger.report(key, 'a', { tokens: 0, tool_calls: 15 });
  await ledger.close(key, 'a');
  expect(await readStanding(stack.pool, run)).toMatchObject({ spent: { tool_calls: 15 }, reserved: { tool_calls: 0 } });
  expect(await ledger.admit(key, 'b', most)).toMatchObject({
    kind: 'refused',
    refusals: [{ run, on_exceed: 'pause' }],
  });
});

test('batches that ask at the same time never have more reserved than the bound', async () => {
  const key = freshSalt();
  const { run, ledger } = await waitingRun(key, { tool_calls: 100 });
  const asked = Array.from({ length: 12 }, (_, unit) => ledger.admit(key, `${unit}`, { ...NOTHING, tool_calls: 30 }));
  const kinds = (await Promise.all(asked)).map(({ kind }) => kind).sort();
  expect(kinds).toEqual([...Array(3).fill('admitted'), ...Array(9).fill('wait')]);
  expect((await readStanding(stack.pool, run)).reserved.tool_calls).toBe(90);
});

test('a trainer is charged for as long as it is held: GPUs where it has them, cores where it has none', async () => {
  const key = freshSalt();
  const { run, ledger } = await waitingRun(key, { gpu_hours: 1e-4 });
  const hold = (unit: string, gpus: number, cpus: number) => ledger.hold(key, unit, { gpus, cpus });
  await Promise.all([hold('trainer 1', 4, 0), hold('trainer 2', 0, 2)]);
  expect(await ledger.mayGoOn(key)).toEqual({ kind: 'admitted' });
  await sleep(300);
  await Promise.all([hold('trainer 1', 4, 0), hold('trainer 2', 0, 2)]);
  const { spent } = await readStanding(stack.pool, run);
  expect(spent.gpu_hours * 3600).toBeGreaterThan(4 * 0.3);
  expect(spent.gpu_hours / spent.cpu_hours).toBeCloseTo(2, 0);
  expect(await ledger.mayGoOn(key)).toMatchObject({ kind: 'refused' }); // 0.36 s of GPU time
});
