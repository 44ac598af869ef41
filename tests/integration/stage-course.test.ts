import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { PoolLedger } from '../../activities/adapters/pool-ledger.ts';
import { StepLedger } from '../../activities/adapters/step-ledger.ts';
import { NodeProgress } from '../../activities/node-progress.ts';
import { openProfile, openStack, type Stack } from '../../cli/open-stack.ts';
import { startRun } from '../../cli/start-run.ts';
import type { CheckpointBody, Manifest, ProfileBody } from '../../schemas/artifact.ts';
import type { Plan } from '../../schemas/plan.ts';
import { writeProfile } from './toy-profile.ts';
import { startPostgres, startTemporal, type TestService } from './toy-services.ts';
import {
  evaluateEvery,
  type StagePlanOptions,
  type StageWorker,
  stagePlan,
  startStageWorker,
  type ToyStage,
} from './toy-stage.ts';

/** What decides the course of an rl stage, on real PostgreSQL and Temporal; only the policy and its trainer are small. */
let folder: string;
let postgres: TestService;
let temporal: TestService;
let stack: Stack;
let worker: StageWorker;

/** A task `t3` is solved by sample k when ability + k > 3; the ability of the weights is the test's to say. */
let ability: (step: number) => number;
let entropy: (step: number) => number;
/** Share of the four held-out questions that are right. */
let score: (step: number) => number;
/** How long a step trains and a request is sampled. */
let training: (step: number) => Promise<void>;
let sampling: (name: string) => Promise<void>;
/** Steps that were trained, in order. */
let trained: number[];
const toy: ToyStage = {
  passes: (task, sample, step) =>
    task.startsWith('h') ? Number(task.slice(1)) < 4 * score(step) : ability(step) + sample > Number(task.slice(1)),
  samples: (name) => sampling(name),
  async trains(step) {
    await training(step);
    trained.push(step);
    return { entropy: entropy(step) };
  },
};

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-course-'));
  process.env['EXP_HOME'] = join(folder, 'home');
  postgres = await startPostgres();
  temporal = await startTemporal();
  const profile = writeProfile(folder, { postgres: postgres.address, temporal: temporal.address });
  stack = (await openStack(openProfile(profile).profile)) as Stack;
  worker = await startStageWorker(stack, toy);
});

beforeEach(() => {
  ability = () => 0;
  entropy = () => 1;
  score = () => 0.5;
  training = async () => {};
  sampling = async () => {};
  trained = [];
  worker.requests.length = 0;
});

afterAll(async () => {
  await worker?.stop();
  await stack?.close();
  await Promise.all([postgres?.stop(), temporal?.stop()]);
  await rm(folder, { recursive: true, force: true });
});

const TASKS = ['t0', 't1', 't2', 't3', 't4', 't5', 't6', 't7', 't8'];
const keyOf = (plan: Plan, id: string): string => plan.arms[0]?.nodes.find((node) => node.id === id)?.key as string;

interface Ended {
  plan: Plan;
  run: string;
  status: string;
}
async function start(name: string, options: Partial<StagePlanOptions>): Promise<Ended> {
  const plan = await stagePlan(stack, name, { tasks: TASKS, ...options });
  const { run } = await startRun(stack, plan);
  return { plan, run, status: 'running' };
}
async function ended(started: Ended): Promise<Ended> {
  const handle = (await stack.temporal()).workflow.getHandle(`run/${started.run}`);
  return { ...started, status: ((await handle.result()) as { status: string }).status };
}
const manifestOf = async (plan: Plan, id: string): Promise<Manifest> => {
  const artifact = await stack.store.find(keyOf(plan, id));
  if (!artifact) throw new Error(`${id} is not published`);
  return stack.store.manifest(artifact);
};
const bodyOf = async <T>(plan: Plan, id: string): Promise<T> => (await manifestOf(plan, id)).body as unknown as T;
const curve = async (plan: Plan, name: string) =>
  Object.fromEntries((await new NodeProgress(stack.pool).curves(keyOf(plan, 'stage'), [name])).get(name) ?? []);
const asked = (name: string) => worker.requests.filter((request) => request.name === name);

test('a profile samples decided tasks no further, says what that saved, and the stage draws from what it kept', async () => {
  const { plan, status } = await ended(
    await start('decided', { stage: { until: { steps: 1, epochs: null, plateau: null } } }),
  );
  expect(status).toBe('done');
  const body = await bodyOf<ProfileBody>(plan, 'stage.profile');
  // Of 4: t0 passes three times, t1 twice, t2 once, the others never.
  expect(body).toMatchObject({ tasks: 9, kept: 3, never: 6 });
  const sampled = asked('0').reduce((sum, { trajectories }) => sum + trajectories, 0);
  expect(body.saved).toBe(9 * 4 - sampled);
  expect(body.saved).toBeGreaterThan(0);
  expect(asked('0').length).toBeGreaterThan(1); // in rounds
  expect(body.mix['direct_retrieval']).toEqual({ before: 5 / 9, after: 2 / 3 });
  for (const { tasks } of asked('1')) for (const task of tasks) expect(['t0', 't1', 't2']).toContain(task);
});

test('what is too large for one history is sampled in parts, each trajectory once, and the outcome is the same', async () => {
  const tasks = Array.from({ length: 60 }, (_, index) => `t${index}`);
  const { plan, status } = await ended(
    await start('parts', { tasks, stage: { until: { steps: 1, epochs: null, plateau: null } } }),
  );
  expect(status).toBe('done');
  // Two rounds of more than 64 trajectories; t0 to t2 pass as they did among nine tasks.
  const body = await bodyOf<ProfileBody>(plan, 'stage.profile');
  expect(body).toMatchObject({ tasks: 60, kept: 3, never: 57 });
  const sampled = asked('0').reduce((sum, { trajectories }) => sum + trajectories, 0);
  expect(body.saved).toBe(60 * 4 - sampled);
  // A task that never passes is decided by its fourth sample, any other by its second at the soonest.
  expect(sampled).toBeGreaterThanOrEqual(57 * 4 + 3 * 2);
  expect(sampled).toBeLessThanOrEqual(60 * 4);
  const { workflowExecutionInfo } = (
    await (await stack.temporal()).workflow.getHandle(`rollouts/${keyOf(plan, 'stage.profile')}/0`).describe()
  ).raw;
  expect(workflowExecutionInfo?.firstRunId).not.toBe(workflowExecutionInfo?.execution?.runId);
});

test('a step asks for as many other prompts as were dropped, and goes on with what there is', async () => {
  // All of t0 and t1 are solved by the weights that sample step 2: only t2 teaches.
  ability = (step) => (step >= 1 ? 2 : 0);
  const { plan, status } = await ended(
    await start('refill', { stage: { until: { steps: 2, epochs: null, plateau: null } } }),
  );
  expect(status).toBe('done');
  expect(asked('1')).toHaveLength(1);
  expect(asked('1.1')).toHaveLength(0);
  const first = asked('2')[0];
  expect(first?.tasks).toHaveLength(2);
  expect(asked('2.1')[0]?.tasks).toHaveLength(1); // the pool of three has one more
  expect(asked('2.1')[0]?.trajectories).toBe(4);
  expect(await curve(plan, 'rollout/groups_trained')).toEqual({ 1: 2, 2: 1 });
  expect(await curve(plan, 'rollout/groups_same_share')).toEqual({ 1: 0, 2: expect.closeTo(2 / 3) });
});

test('a stage measures its benchmark on the way, ends on a plateau, and keeps the newest and the best checkpoints', async () => {
  score = (step) => ({ 1: 0.25, 2: 0.75, 3: 0.5, 4: 0.5 })[step] ?? 0;
  const { plan, status } = await ended(
    await start('plateau', {
      stage: {
        evaluate: evaluateEvery(1),
        until: { steps: null, epochs: null, plateau: { metric: 'eval/held_out/avg_at_1', patience: 2, min_delta: 0 } },
      },
      checkpoint: { every: 1, keep: { last: 1, best: 1 } },
    }),
  );
  expect(status).toBe('done');
  expect(await curve(plan, 'eval/held_out/avg_at_1')).toEqual({ 1: 0.25, 2: 0.75, 3: 0.5, 4: 0.5 });
  const { step, stop_reason } = await bodyOf<CheckpointBody>(plan, 'stage');
  expect({ step, stop_reason }).toEqual({ step: 4, stop_reason: 'plateau' });
  const manifest = await manifestOf(plan, 'stage');
  expect(manifest.metrics.find(({ name, step: at }) => name === 'eval/held_out/avg_at_1' && at === 2)?.value).toBe(
    0.75,
  );

  const ledger = new StepLedger(stack.pool);
  expect(await ledger.savedSteps(keyOf(plan, 'stage'))).toEqual([2, 4]);
  expect(await ledger.between(keyOf(plan, 'stage'), 0, 9)).toHaveLength(4); // no step is forgotten, only its weights
});

test('states that are let go leave the store', async () => {
  const { plan } = await ended(await start('let_go', { checkpoint: { every: 1, keep: { last: 2 } } }));
  const ledger = new StepLedger(stack.pool);
  expect(await ledger.savedSteps(keyOf(plan, 'stage'))).toEqual([3, 4]);
  const names = new Set<number>();
  for await (const { sha256 } of stack.store.blobCollector?.list() ?? []) {
    const text = await readFile(await stack.store.openBlob(sha256), 'utf8');
    if (text.includes(keyOf(plan, 'stage')) && text.includes('optimizer.safetensors')) {
      const { step } = JSON.parse(text) as { step?: number };
      if (step !== undefined) names.add(step);
    }
  }
  expect([...names].sort()).toEqual([3, 4]);
});

test('a metric beyond its limits pauses the run with the reason, and `continue` goes on from there, once', async () => {
  entropy = (step) => (step >= 2 ? 0.01 : 1);
  const started = await start('unhealthy', {
    stage: { health: { limits: { 'train/entropy': { min: 0.1, max: null } }, for: 2, on_breach: 'pause' } },
  });
  const handle = (await stack.temporal()).workflow.getHandle(`run/${started.run}`);
  const paused = () => handle.query<{ paused: { reason: string; over_budget: boolean } | null }>('state');
  await vi.waitFor(async () => expect((await paused()).paused).not.toBeNull(), { timeout: 30_000, interval: 100 });
  expect((await paused()).paused).toMatchObject({
    reason: 'stage: train/entropy is 0.01, below 0.1, at step 3 and the 1 before',
    over_budget: false,
  });
  const ledger = new StepLedger(stack.pool);
  expect((await ledger.lastSaved(keyOf(started.plan, 'stage')))?.step).toBe(3);

  await handle.executeUpdate('continue');
  // Steps 4 and 5 would be two in a row again; the stage has four.
  const { plan, status } = await ended(started);
  expect(status).toBe('done');
  expect(await bodyOf<CheckpointBody>(plan, 'stage')).toMatchObject({ step: 4, stop_reason: 'steps' });
  expect(await curve(plan, 'health/paused')).toEqual({ 3: 1 });
});

test('a stage in trouble goes back to its best checkpoint and ends there', async () => {
  entropy = (step) => (step >= 4 ? 0.01 : 1);
  score = (step) => (step === 2 ? 0.75 : 0.25);
  const { plan, status } = await ended(
    await start('back', {
      stage: {
        until: { steps: 50, epochs: null, plateau: null },
        evaluate: evaluateEvery(2),
        health: { limits: { 'train/entropy': { min: 0.1, max: null } }, for: 1, on_breach: 'back_to_best' },
      },
      checkpoint: { every: 1, keep: { last: 1 } },
    }),
  );
  expect(status).toBe('done');
  const body = await bodyOf<CheckpointBody>(plan, 'stage');
  expect(body).toMatchObject({ step: 2, stop_reason: 'health' });
  const saved = (await new StepLedger(stack.pool).get(keyOf(plan, 'stage'), 2))?.saved;
  expect(body.adapters).toEqual([saved?.adapter]);
});

test('pass rates are measured again on the way, and steps draw from the tasks they keep', async () => {
  ability = (step) => (step >= 2 ? 4 : 0);
  const { plan, status } = await ended(await start('refresh', { stage: { refresh_every: 2 } }));
  expect(status).toBe('done');
  // With four more, t0 to t3 are always solved, and t4 to t6 sometimes.
  for (const { tasks } of [...asked('1'), ...asked('2')])
    for (const task of tasks) expect(['t0', 't1', 't2']).toContain(task);
  for (const { tasks } of [...asked('3'), ...asked('4')])
    for (const task of tasks) expect(['t4', 't5', 't6']).toContain(task);
  expect(await curve(plan, 'profile/kept')).toEqual({ 2: 3 });
  expect(await new PoolLedger(stack.pool).newest(keyOf(plan, 'stage'), 9)).toMatchObject({ step: 2, tasks: 3 });
});

test('a stage whose tasks are all learnt ends there', async () => {
  ability = (step) => (step >= 2 ? 20 : 0);
  const { plan, status } = await ended(await start('learnt', { stage: { refresh_every: 2 } }));
  expect(status).toBe('done');
  expect(await bodyOf<CheckpointBody>(plan, 'stage')).toMatchObject({ step: 2, stop_reason: 'too_few_solvable' });
});

const AHEAD = {
  group_size: 4,
  prompts_per_step: 2,
  temperature: 1,
  top_p: 1,
  refills: 2,
  max_staleness: 1,
  cutoff: null,
};
const samplers = (...steps: number[]) =>
  Object.fromEntries(steps.map((step) => [step, asked(`${step}`).map((of) => of.sampler)]));
/** What waits for it goes on once it is open, or fails with it. */
function gate() {
  let open = () => {};
  let fail = (_: Error) => {};
  const opened = new Promise<void>((resolve, reject) => {
    open = resolve;
    fail = reject;
  });
  return { opened, open, fail };
}
const isAsked = (name: string) =>
  vi.waitFor(() => expect(asked(name)).not.toHaveLength(0), { timeout: 60_000, interval: 50 });

test('with max_staleness 1 a step is sampled while the step before it trains, and no step more is', async () => {
  // No step ends before the next one is being sampled.
  training = async (step) => void (step < 4 && (await isAsked(`${step + 1}`)));
  const { plan, status } = await ended(await start('overlap', { stage: { rollout: AHEAD } }));
  expect(status).toBe('done');
  expect(trained).toEqual([1, 2, 3, 4]);
  expect(samplers(1, 2, 3, 4, 5)).toEqual({ 1: [0], 2: [0], 3: [1], 4: [2], 5: [] });
  expect(await curve(plan, 'rl/staleness')).toEqual({ 1: 0, 2: 1, 3: 1, 4: 1 });
  expect(await curve(plan, 'rl/rollouts_dropped')).toEqual({});
  expect(await new StepLedger(stack.pool).savedSteps(keyOf(plan, 'stage'))).toEqual([4]);
  expect(await bodyOf<CheckpointBody>(plan, 'stage')).toMatchObject({ step: 4, stop_reason: 'steps' });
});

test('groups that are dropped are replaced with the weights of their step', async () => {
  ability = (step) => (step >= 1 ? 2 : 0); // as above: only t2 teaches from step 1 on
  const { plan, status } = await ended(
    await start('overlap_refill', { stage: { rollout: AHEAD, until: { steps: 3, epochs: null, plateau: null } } }),
  );
  expect(status).toBe('done');
  expect(asked('3').map(({ sampler }) => sampler)).toEqual([1]);
  expect(asked('3.1').map(({ sampler }) => sampler)).toEqual([1]);
  expect(await curve(plan, 'rollout/groups_trained')).toEqual({ 1: 2, 2: 2, 3: 1 });
});

test('the step after an evaluation is on-policy, and so is every step without max_staleness', async () => {
  const overlap = await ended(await start('boundary', { stage: { rollout: AHEAD, evaluate: evaluateEvery(2) } }));
  expect(await curve(overlap.plan, 'rl/staleness')).toEqual({ 1: 0, 2: 1, 3: 0, 4: 1 });
  expect(samplers(1, 2, 3, 4)).toEqual({ 1: [0], 2: [0], 3: [2], 4: [2] });
  const { plan } = await ended(await start('on_policy', {}));
  expect(await curve(plan, 'rl/staleness')).toEqual({ 1: 0, 2: 0, 3: 0, 4: 0 });
});

test('a worker that dies and a pause, both while a step trains and the next is sampled, change and repeat nothing', async () => {
  const dies = gate();
  training = async (step) => {
    if (step < 4) await isAsked(`${step + 1}`);
    if (step === 2) await dies.opened;
  };
  sampling = async (name) => void (name === '3' && (await dies.opened));
  const started = await start('killed', { stage: { rollout: AHEAD } });
  await isAsked('3');
  const before = worker.requests.slice();
  const stopping = worker.stop();
  dies.fail(new Error('killed'));
  await stopping;
  expect(trained).toEqual([1]);

  // The pause comes while step 3 trains and step 4 is sampled.
  const paused = gate();
  training = async (step) => void (step === 3 && (await paused.opened));
  sampling = async (name) => void (name === '4' && (await paused.opened));
  worker = await startStageWorker(stack, toy);
  worker.requests.push(...before);
  await isAsked('4');
  const handle = (await stack.temporal()).workflow.getHandle(`run/${started.run}`);
  await handle.executeUpdate('pause', { args: [{ reason: 'lunch' }] });
  const stage = (await stack.temporal()).workflow.getHandle(`stage/${keyOf(started.plan, 'stage')}`);
  const hears = async () => {
    const { events } = await stage.fetchHistory();
    const names = events?.map((event) => event.workflowExecutionSignaledEventAttributes?.signalName);
    expect(names).toContain('pause');
  };
  await vi.waitFor(hears, { timeout: 60_000, interval: 100 });
  paused.open();
  const ends = async () => expect((await stage.describe()).status.name).toBe('FAILED');
  await vi.waitFor(ends, { timeout: 60_000, interval: 100 });
  expect(trained).toEqual([1, 2, 3]);
  await handle.executeUpdate('continue');

  const { plan, status } = await ended(started);
  expect(status).toBe('done');
  expect(trained).toEqual([1, 2, 3, 4]);
  expect(await curve(plan, 'rl/staleness')).toEqual({ 1: 0, 2: 1, 3: 1, 4: 1 });
  for (const step of [1, 2, 3, 4]) {
    expect(new Set(asked(`${step}`).map(({ shard }) => shard)).size).toBe(1);
    expect(new Set(asked(`${step}`).map(({ sampler }) => sampler))).toEqual(new Set([Math.max(0, step - 2)]));
  }
  expect(asked('5')).toEqual([]);
});

test('a pause for health drops nothing: the next step goes on with the weights it began with, and the end is the end', async () => {
  entropy = (step) => (step >= 3 ? 0.01 : 1); // told at step 3, while step 4 is under way, and again at the last
  training = async (step) => void (step === 3 && (await isAsked('4')));
  const started = await start('unhealthy_ahead', {
    stage: {
      rollout: AHEAD,
      health: { limits: { 'train/entropy': { min: 0.1, max: null } }, for: 1, on_breach: 'pause' },
    },
  });
  const handle = (await stack.temporal()).workflow.getHandle(`run/${started.run}`);
  for (const step of [3, 4]) {
    const reason = `stage: train/entropy is 0.01, below 0.1, at step ${step}`;
    const pauses = async () => expect(await handle.query('state')).toMatchObject({ paused: { reason } });
    await vi.waitFor(pauses, { timeout: 60_000, interval: 100 });
    await handle.executeUpdate('continue');
  }
  const { plan, status } = await ended(started);
  expect(status).toBe('done');
  expect(trained).toEqual([1, 2, 3, 4]);
  expect(new Set(asked('4').map(({ shard, sampler }) => `${sampler} ${shard}`)).size).toBe(1);
  expect(await curve(plan, 'rl/staleness')).toEqual({ 1: 0, 2: 1, 3: 1, 4: 1 });
  expect(await curve(plan, 'rl/rollouts_dropped')).toEqual({});
});

test('rollouts under way when a stage ends early are dropped, and it says so', async () => {
  entropy = (step) => (step >= 3 ? 0.01 : 1);
  const never = new Promise<void>(() => {});
  sampling = async (name) => void (name === '4' && (await never));
  training = async (step) => void (step === 3 && (await isAsked('4')));
  const { plan, status } = await ended(
    await start('dropped', {
      stage: {
        rollout: AHEAD,
        until: { steps: 50, epochs: null, plateau: null },
        evaluate: evaluateEvery(2),
        health: { limits: { 'train/entropy': { min: 0.1, max: null } }, for: 1, on_breach: 'back_to_best' },
      },
    }),
  );
  expect(status).toBe('done');
  expect(await bodyOf<CheckpointBody>(plan, 'stage')).toMatchObject({ step: 2, stop_reason: 'health' });
  expect(await curve(plan, 'rl/rollouts_dropped')).toEqual({ 4: 1 });
  expect(trained).toEqual([1, 2, 3]);
  const { rows } = await stack.pool.query('select detail from node_progress where key = $1', [keyOf(plan, 'stage')]);
  expect(rows).toEqual([{ detail: 'ended before step 4, whose rollouts are dropped' }]);
});

test('a stage refuses a profile that measured other weights', async () => {
  const plan = await stagePlan(stack, 'foreign', { tasks: TASKS });
  const key = keyOf(plan, 'stage.profile');
  const lines = join(folder, 'pass_rates.jsonl');
  await writeFile(lines, '{"task_id":"t0","kept":true,"weight":1}\n');
  const body = { tasks: 1, kept: 1, checkpoint: 'f'.repeat(64) };
  await stack.store.publish({
    key,
    kind: 'profile',
    inputs: [],
    files: { 'pass_rates.jsonl': lines },
    body,
    metrics: [],
  });
  const { run } = await startRun(stack, plan);
  const { status } = await ended({ plan, run, status: '' });
  expect(status).toBe('failed');
  const outcome = await (await stack.temporal()).workflow.getHandle(`node/${keyOf(plan, 'stage')}`).result();
  expect(outcome).toMatchObject({
    error: {
      code: 'PROFILE_CHECKPOINT',
      message: expect.stringMatching(
        /measured the checkpoint f{12}, and this stage starts from [0-9a-f]{12}; .*exp rerun RUN --from stage.profile/,
      ),
    },
  });
});
