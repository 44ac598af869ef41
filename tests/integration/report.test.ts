import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openDedup } from '../../activities/adapters/mlflow-delivery.ts';
import { Outbox } from '../../activities/adapters/outbox.ts';
import { batchColumns, trajectoryColumns, writeParquet } from '../../activities/adapters/parquet.ts';
import { openProfile, type Stack } from '../../cli/open-stack.ts';
import { collectReport } from '../../cli/report/collect.ts';
import type { ShownTrajectory } from '../../cli/report/document.ts';
import { writePage } from '../../cli/report/write-page.ts';
import { findRun } from '../../cli/run-state.ts';
import { sendToMlflow } from '../../cli/send-to-mlflow.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { Plan, PlanNode } from '../../schemas/plan.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';
import { connectStore, startPostgres, type TestService } from './toy-services.ts';

/** A real store and real tables, filled by hand with a run of two arms that share all but their last stage. */
let postgres: TestService;
let stack: Stack;
let folder: string;

const RUN = 'made-1';
const key = (digit: number): string => digit.toString(16).repeat(64);
const { profile } = openProfile('local');

const CORPUS = node('corpus', 'corpus', 1, [], {
  sources: { docs: { kind: 'jsonl', licence: 'CC-BY-4.0', provenance: 'somewhere' } },
});
const TASKS = node('tasks', 'tasks', 2, ['corpus']);
const PROFILE = node('stage1.profile', 'profile', 3, ['tasks'], { context_length: 400 });
const STAGES = [4, 5].map((digit) => node('stage1', 'rl', digit, ['tasks', 'stage1.profile'], { context_length: 400 }));
const BENCHMARKS = [6, 7].map((digit) => node('gaia.stage1', 'benchmark', digit, ['stage1'], { context_length: 400 }));
const PLAN: Plan = {
  api_version: 'exp/v1',
  run_key: key(15),
  name: 'made',
  profile: 'local',
  spec_path: 'made.yaml',
  spec: { name: 'made', references: { paper: { world: 'web', gaia: 50 } } },
  tracking: { mlflow_experiment: 'made' },
  arms: ['control', 'hot'].map((name, at) => ({
    name,
    seed: 17,
    changes: at === 0 ? {} : { 'curriculum.stage1.rollout.temperature': 2 },
    nodes: [CORPUS, TASKS, PROFILE, STAGES[at] as PlanNode, BENCHMARKS[at] as PlanNode],
  })),
};

function node(id: string, kind: PlanNode['kind'], digit: number, inputs: string[], parameters = {}): PlanNode {
  return { id, kind, kind_version: 1, key: key(digit), inputs, parameters, files: [], seed: null, unkeyed: {} };
}

function trajectory(id: string, task: string, { right, group = task }: { right: boolean; group?: string }): Trajectory {
  const span = { turn: 0, status: 'ok', latency_ms: 1, cached: false, denied: 0, weight_version: '' } as const;
  return {
    trajectory_id: id,
    task_id: task,
    group_id: group,
    sample: 0,
    branch: 0,
    checkpoint: key(9),
    sampling: { temperature: 1, top_p: 1, seed: 1 },
    token_ids: [1, 2, 3, 4],
    mask: [0, 0, 1, 1],
    logprobs: [0, 0, -1, -1],
    spans: [
      { ...span, kind: 'prompt', start: 0, end: 2, tool: null },
      { ...span, kind: 'action', start: 2, end: 4, tool: 'answer' },
    ],
    reward: { outcome: right ? 1 : 0, turns: [null] },
    score: { exact_match: right ? 1 : 0, f1: right ? 1 : 0, format_valid: true, answer_in_observation: false },
    judge: null,
    advantages: [],
    beliefs: [],
    termination: 'answer',
    failure_class: null,
    answer: 'a',
    messages: [
      { role: 'user', content: `Question ${task}?` },
      { role: 'assistant', content: '<think>t</think><answer>a</answer><|im_end|>' },
    ],
  };
}

async function file(name: string, text: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

async function shard(request: string, rows: Trajectory[], node_key: string | null): Promise<void> {
  const path = join(folder, `${request}.parquet`);
  await writeParquet(path, rows, trajectoryColumns);
  await stack.pool.query(
    `insert into rollout_shards (request, batch, checkpoint_digest, blob, trajectories, failed, node_key) values ($1, 0, 'c', $2, $3, 0, $4)`,
    [request, await stack.store.putBlob(path), rows.length, node_key],
  );
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-report-'));
  postgres = await startPostgres();
  stack = await connectStore(postgres.address, folder);
  const publish = ({ key: of, kind }: PlanNode, body: object, files = {}, metrics: object[] = []): Promise<unknown> =>
    stack.store.publish({ key: of, kind, inputs: [], files, body, metrics: metrics as never });

  await publish(CORPUS, { pages: 3, bytes: 30, dropped: {}, sources: [] });
  const task = (id: string) =>
    JSON.stringify({ task_id: id, question: `Question ${id}?`, answer: 'a', aliases: [], capability: 'aggregation' });
  await publish(
    TASKS,
    { tasks: 2, splits: { train: 2 }, mix: { aggregation: { asked: 3, realised: 2 } }, dropped: {} },
    { 'tasks.jsonl': await file('tasks.jsonl', `${task('q1')}\n${task('q2')}\n`) },
  );
  const rate = (passes: number, kept: boolean) =>
    JSON.stringify({ task_id: 'q', rollouts: 2, masked: 0, passes, pass_rate: 0, kept, mean_tokens: 0 });
  await publish(
    PROFILE,
    { tasks: 2, rollouts: 4, never: 1, sometimes: 1, always: 0, kept: 1 },
    { 'pass_rates.jsonl': await file('pass_rates.jsonl', `${rate(0, false)}\n${rate(1, true)}\n`) },
  );
  const metric = (step: number, value: number) => ({ name: 'rollout/pass_rate', step, value, timestamp_ms: 0 });
  await publish(STAGES[0] as PlanNode, { step: 2 }, {}, [metric(2, 0.5), metric(1, 0.25)]);
  for (const [at, correct] of [1, 2].entries()) {
    const results = Array.from({ length: 8 }, (_, question) => ({ task_id: `g${question}`, samples: 2, correct }));
    await publish(
      BENCHMARKS[at] as PlanNode,
      {
        benchmark: 'gaia',
        after: 'stage1',
        questions: 8,
        samples: 2,
        protocol: { samples: 2 },
        results: { avg_at_2: { value: correct / 2, low: 0, high: 1 } },
        baselines: {},
        answer_in_observation: 0,
        groups: {},
        unfinished: 0,
        masked: 0,
        tool_use: {},
      },
      { 'results.jsonl': await file(`${at}.jsonl`, results.map((one) => `${JSON.stringify(one)}\n`).join('')) },
    );
  }

  // Sealed before shards named their node: told by the first trajectory of the request.
  const old = key(3).slice(0, 12);
  const request = `{"batch_size":32}\n{"trajectory_id":"${old}/0/q1/0"}\n`;
  const rows = [
    trajectory(`${old}/0/q1/0`, 'q1', { right: true }),
    trajectory(`${old}/0/q2/0`, 'q2', { right: false }),
  ];
  await shard(await stack.store.putBlob(Buffer.from(request)), rows, null);
  const stage = key(4).slice(0, 12);
  await shard('r4', [trajectory(`${stage}/2.1/q1/0`, 'q1', { right: true })], key(4));
  const gaia = key(6).slice(0, 12);
  const closed = trajectory(`${gaia}/0/closed_book/q1/0`, 'q1', { right: false, group: 'closed_book/q1' });
  await shard('r6', [closed], key(6));
  await shard('other', [trajectory('ffffffffffff/0/q1/0', 'q1', { right: true })], key(14)); // of another run
  await stack.pool.query(
    `insert into rollout_shards (request, batch, checkpoint_digest, blob, trajectories, failed, node_key) values ('gone', 0, 'c', $1, 1, 0, $2)`,
    [key(13), key(5)],
  );

  const batch = join(folder, 'batch.parquet');
  const advantages = [0, 0, 0.75, 0.75];
  const sequence = { token_ids: [1, 2, 3, 4], mask: [0, 0, 1, 1], behavior_logprobs: [0, 0, -1, -1], temperature: 1 };
  await writeParquet(batch, [{ sequence_id: `${stage}/2.1/q1/0#0`, advantages, weight: 1, ...sequence }], batchColumns);
  await stack.pool.query(
    `insert into steps (stage_key, step, batch_blob, checkpoint_before, status) values ($1, 2, $2, 'c', 'done')`,
    [key(4), await stack.store.putBlob(batch)],
  );
  await stack.pool.query(
    `insert into runs (id, run_key, name, profile, plan_blob, status, created_at, ended_at)
     values ($1, $2, 'made', 'local', $3, 'failed', now() - interval '1 hour', now())`,
    [RUN, key(15), await stack.store.putJson(PLAN)],
  );
  await stack.pool.query(
    `insert into node_progress (key, kind, status, attempts, started_at, ended_at) values
       ($1, 'rl', 'done', 2, now() - interval '30 minutes', now() - interval '10 minutes')`,
    [key(4)],
  );
});

afterAll(async () => {
  await stack?.close();
  await postgres?.stop();
  await rm(folder, { recursive: true, force: true });
});

/** Temporal is away, as it is once it has forgotten a run. */
async function collect(trajectories = 10) {
  const row = await findRun(stack.pool, RUN);
  const temporal = () => Promise.reject(new ExpError('SERVICE_UNREACHABLE', 'Temporal', 'no answer'));
  return collectReport({ ...stack, temporal }, profile, { row, trajectories, control: undefined, onFile: () => {} });
}

async function shownBy({ shown }: Awaited<ReturnType<typeof collect>>): Promise<ShownTrajectory[]> {
  const all: ShownTrajectory[] = [];
  for await (const one of shown()) all.push(one);
  return all;
}

test('nodes that arms share stand once, and everything is told from tables and artifacts', async () => {
  const { report } = await collect();
  expect(report.nodes.map(({ name, arms }) => `${name}: ${arms.join()}`)).toEqual([
    'corpus: control,hot',
    'tasks: control,hot',
    'stage1.profile: control,hot',
    'control/stage1: control',
    'control/gaia.stage1: control',
    'hot/stage1: hot',
    'hot/gaia.stage1: hot',
  ]);
  expect(report.nodes[4]?.inputs).toEqual(['control/stage1']);
  expect(report.licences).toContainEqual({
    used_as: 'corpus source',
    name: 'docs',
    licence: 'CC-BY-4.0',
    provenance: 'somewhere',
  });
  expect(report.curves).toEqual([
    {
      node: 'control/stage1',
      kind: 'rl',
      metrics: {
        'rollout/pass_rate': [
          [1, 0.25],
          [2, 0.5],
        ],
      },
    },
  ]);
  expect(report.profiles[0]).toMatchObject({ rollouts: 2, before: [1, 1, 0], after: [0, 1, 0] });
  expect(report.cost).toEqual([
    expect.objectContaining({ node: 'control/stage1', trajectories: 1, tokens: 4, action_tokens: 2, seconds: 1200 }),
  ]);
  expect(report.benchmarks[0]?.references).toEqual([{ name: 'paper', protocol: 'world web', value: 0.5 }]);
  const [comparison] = report.comparisons;
  expect(comparison?.control).toBe('control');
  expect(comparison?.rows[1]?.paired).toMatchObject({ difference: { value: 0.5, low: 0.5, high: 0.5 }, wins: 8 });
});

test('trajectories are those of this run alone, also of shards that do not name their node', async () => {
  const collected = await collect();
  const { index, notes } = { index: collected.report.trajectories, notes: collected.report.notes };
  expect({ total: index.total, sources: index.sources }).toEqual({
    total: 4,
    sources: ['stage1.profile', 'control/stage1', 'control/gaia.stage1 (closed book)'],
  });
  expect(index.columns.step).toEqual([0, 0, 2, 0]);
  const shown = await shownBy(collected);
  expect(shown.map(({ id }) => id)).toEqual(index.columns.id);
  expect(shown.map(({ turns }) => turns[0]?.advantage)).toEqual([null, null, 0.75, null]);
  expect(shown[0]).toMatchObject({ question: 'Question q1?', reference: 'a', capability: 'aggregation' });
  expect(collected.report.usage.find(({ node: of }) => of === 'control/gaia.stage1')?.outcomes.wrong).toBe(0);
  expect(notes).toContain('1 of 4 files of trajectories are no longer in the store.');
  expect(notes.join()).toMatch(/Histories could not be read/);
});

test('of more trajectories than asked for the reader holds a sample, the sums hold all, and both are said', async () => {
  const few = await collect(2);
  const { total, embedded, columns } = few.report.trajectories;
  expect({ total, embedded }).toEqual({ total: 4, embedded: 2 });
  expect((await shownBy(few)).map(({ id }) => id)).toEqual(columns.id);
  expect((await collect(2)).report.trajectories.columns.id).toEqual(columns.id);
  expect(few.report.usage.map(({ outcomes }) => outcomes.right + outcomes.wrong)).toEqual([2, 1, 0]);
  expect(few.report.notes.join()).toContain('2 of 4 trajectories are left out of the reader');
});

test('the page goes to MLflow through the outbox, under the run it tells of', async () => {
  const { report, shown } = await collect();
  const path = join(folder, 'page.html');
  await writePage(path, report, shown());
  const row = await findRun(stack.pool, RUN);
  expect(await sendToMlflow(stack, row, { name: 'report.html', content: path })).toMatch(/never logged there/);

  const delivered: unknown[] = [];
  const outbox = new Outbox<object>({
    pool: stack.pool,
    deliver: async (payload) => void delivered.push(payload),
    refusedCodes: [],
    log: () => {},
  });
  await outbox.enqueue(openDedup(RUN), RUN, { op: 'open' });
  const ending = new AbortController();
  const draining = outbox.drain({ signal: ending.signal });
  expect(await sendToMlflow(stack, row, { name: 'report.html', content: path })).toBe(`MLflow: report.html of ${RUN}`);
  ending.abort();
  await draining;
  expect(delivered).toEqual([{ op: 'open' }, { op: 'file', path: RUN, name: 'report.html', blob: expect.any(String) }]);
  const { blob } = delivered[1] as { blob: string };
  expect(await readFile(await stack.store.openBlob(blob))).toEqual(await readFile(path));
});
