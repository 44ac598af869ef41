/** From the packages of this checkout to demonstrations, a benchmark and a report: real pages, index, search and visit. */
import { readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { openBlobStore } from '../../activities/adapters/blob-store.ts';
import { readParquet, trajectoryColumns, writeParquet } from '../../activities/adapters/parquet.ts';
import { createIndexActivities } from '../../activities/build-index.ts';
import { createCorpusActivities } from '../../activities/corpus.ts';
import { createDemonstrationActivities } from '../../activities/demonstrations.ts';
import type { NodeRef } from '../../activities/index.ts';
import { Judges } from '../../activities/judges.ts';
import { createTaskActivities } from '../../activities/make-tasks.ts';
import type { PassRate } from '../../activities/measure-pass-rates.ts';
import { PlanReader } from '../../activities/plan-reader.ts';
import { createPublishBenchmarkActivities } from '../../activities/publish-benchmark.ts';
import { createPublishProfileActivities } from '../../activities/publish-profile.ts';
import { Embedders, Tokenizers, Worlds } from '../../activities/worlds.ts';
import { createReportActivities } from '../../activities/write-report.ts';
import { connectMilvus } from '../../environments/world/milvus.ts';
import type { ArtifactRef, BenchmarkBody, TasksBody, TrajectoriesBody } from '../../schemas/artifact.ts';
import { contentKey } from '../../schemas/canonical.ts';
import type { NodeParameters } from '../../schemas/node-parameters.ts';
import type { NodeKind, Plan, PlanNode } from '../../schemas/plan.ts';
import type { Task } from '../../schemas/task.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';
import { modelsDir, repoRoot } from '../../services/home.ts';
import { startStack, type TestStack } from '../services.ts';

const PAGES = Number(process.env['EXP_TEST_PAGES'] ?? 120);
const TASKS = Number(process.env['EXP_TEST_TASKS'] ?? 40);
const DEMONSTRATIONS = Math.round(TASKS * 0.25);

let stack: TestStack;
let work: string;
let plan: string;
let deps: Awaited<ReturnType<typeof openDeps>>;

beforeAll(async () => {
  stack = await startStack(['postgres', 'milvus']);
  work = await mkdtemp(join(tmpdir(), 'exp-made-tasks-'));
  deps = await openDeps();
  plan = await deps.store.putJson(planOf(nodes));
});

afterAll(async () => {
  await deps?.close();
  await stack?.stop();
  if (work) await rm(work, { recursive: true, force: true });
});

async function openDeps() {
  const { postgres, milvus: milvusAddress } = stack.connections;
  const pool = new pg.Pool({ connectionString: postgres.url, max: 16 });
  const store = new ArtifactStore(
    pool,
    await openBlobStore({ kind: 'dir', path: join(work, 'artifacts') }, join(work, 'cache')),
  );
  const plans = new PlanReader(store);
  const milvus = connectMilvus(milvusAddress);
  const embedders = new Embedders((model) => join(modelsDir(), model));
  const worlds = new Worlds({ plans, pool, milvus, embedders });
  return {
    pool,
    store,
    plans,
    milvus,
    embedders,
    worlds,
    judges: new Judges({ plans, secret: () => '' }),
    work,
    tokenizers: new Tokenizers((model) => join(modelsDir(), model)),
    progress: async () => {},
    async close() {
      await worlds.close();
      await embedders.close();
      await milvus.closeConnection();
      await pool.end();
    },
  };
}

const agent = {
  tools: ['search', 'visit'],
  max_turns: 4,
  max_turn_tokens: 160,
  observation_tokens: 256,
  search_results: 5,
  context_management: 'none' as const,
  deny_urls: 'from_task' as const,
  terminate_on_answer: true,
  faults: null,
};
const sampling = { temperature: 1, top_p: 1 };
const reward = { outcome: 'exact_match' as const, format_penalty: 1, judge: null };
const policy = { model: 'smollm2-135m-instruct', sha256: 'unused', dtype: 'float32' as const };
const profile = {
  tasks: 8,
  split: 'train',
  rollouts: 4,
  buckets: null,
  stop_decided: true,
  keep_mix: false,
  keep: { min_passes: 1, max_passes: 3 },
  agent,
  context_length: 1536,
  sampling,
  reward,
  policy,
};
const mix = { direct_retrieval: 0.4, aggregation: 0.2, enumeration: 0.2, cross_verification: 0.1, statistics: 0.1 };

function node<K extends NodeKind>(
  id: string,
  kind: K,
  inputs: string[],
  parameters: NodeParameters[K],
  unkeyed: PlanNode['unkeyed'] = {},
): PlanNode {
  const keyed = {
    id,
    kind,
    kind_version: 1,
    inputs,
    parameters: { ...parameters } as PlanNode['parameters'],
    files: [],
    seed: 17,
  };
  return { ...keyed, key: contentKey(keyed), unkeyed };
}

const { sha256: embedderDigest } = JSON.parse(
  readFileSync(join(modelsDir(), 'all-minilm-l6-v2', 'digest.json'), 'utf8'),
) as { sha256: string };

const nodes = [
  node(
    'corpus',
    'corpus',
    [],
    {
      sources: {
        docs: {
          kind: 'installed_packages',
          ecosystems: ['npm', 'python'],
          licence: 'as each package declares',
          provenance: 'installed in this checkout',
        },
      },
      limit: { pages: PAGES, chunks: null },
      near_duplicates: { threshold: 0.9 },
      chunk: null,
    },
    { paths: { docs: repoRoot() } },
  ),
  node('index', 'index', ['corpus'], {
    embedder: { model: 'all-minilm-l6-v2', sha256: embedderDigest, precision: 'int8', dimension: 384 },
    chunk: { tokens: 200, overlap: 40 },
    dense: { type: 'hnsw', metric: 'cosine' },
    sparse: 'bm25',
    fusion: { kind: 'rrf', k: 60 },
  }),
  node('tasks', 'tasks', ['corpus'], {
    sources: { made: { kind: 'generated', from: 'corpus', count: TASKS, seed: 17 } },
    mix,
    splits: { held_out: 0.3, train: 0.7 },
    limit: null,
    decontaminate: null,
  }),
  node('cold_start.trajectories', 'trajectories', ['tasks', 'index'], {
    source: 'demonstrations',
    count: DEMONSTRATIONS,
    resample: {
      by: 'turns',
      bands: [
        { up_to: 3, weight: 1 },
        { up_to: null, weight: 2 },
      ],
    },
    clean: null,
    format: null,
    agent,
    context_length: 1536,
    model: { name: 'smollm2-135m-instruct', sha256: 'unused' },
    split: 'train',
  }),
  node('stage1.profile', 'profile', ['tasks', 'index'], profile),
  node('held_out.base', 'benchmark', ['tasks', 'index'], {
    benchmark: 'held_out',
    after: 'base',
    dataset: { split: 'held_out', limit: null, seed: 17 },
    samples: 2,
    metrics: ['avg@k', 'pass@k'],
    agent,
    context_length: 1536,
    sampling,
    policy,
    reward,
  }),
  node('stage2.profile', 'profile', ['tasks', 'index'], profile),
  node('stage2', 'rl', ['tasks', 'index', 'stage2.profile'], {
    rollout: { prompts_per_step: 2 },
  } as NodeParameters['rl']),
  node('report', 'report', ['held_out.base'], { benchmarks: ['held_out.base'] }),
];

function planOf(planNodes: PlanNode[]): Plan {
  return {
    api_version: 'exp/v1',
    run_key: '0'.repeat(64),
    name: 'made-tasks',
    profile: 'local',
    spec_path: '',
    spec: {},
    tracking: { mlflow_experiment: 'test' },
    arms: [{ name: 'main', seed: 17, changes: {}, nodes: planNodes }],
  };
}

function refOf(id: string): NodeRef {
  const { kind, key } = nodes.find((one) => one.id === id) as PlanNode;
  return { plan, arm: 'main', id, kind, key };
}

const run = <A extends unknown[], R>(activity: (...args: A) => Promise<R>, ...args: A): Promise<R> =>
  new MockActivityEnvironment().run(activity, ...args);
const bodyOf = async <Body>(artifact: ArtifactRef): Promise<Body> =>
  (await deps.store.manifest(artifact)).body as unknown as Body;

async function tasksOf(artifact: ArtifactRef): Promise<Task[]> {
  const path = await deps.store.openFile(await deps.store.manifest(artifact), 'tasks.jsonl');
  return (await readFile(path, 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Task);
}

test('pages become tasks of every capability, in the mix asked for, and no page serves two splits', async () => {
  await run(createCorpusActivities(deps).corpus, refOf('corpus'));
  const artifact = await run(createTaskActivities(deps).tasks, refOf('tasks'));
  const { mix: realised } = await bodyOf<TasksBody>(artifact);
  for (const [capability, share] of Object.entries(mix)) {
    expect(realised[capability]).toEqual({ asked: TASKS * share, realised: TASKS * share });
  }
  const tasks = await tasksOf(artifact);
  const splitsOfPage = new Map<string, Set<string>>();
  for (const { evidence, split } of tasks)
    for (const url of evidence) splitsOfPage.set(url, (splitsOfPage.get(url) ?? new Set()).add(split));
  expect([...splitsOfPage.values()].filter((splits) => splits.size > 1)).toEqual([]);
  expect(new Set(tasks.map(({ question }) => question)).size).toBe(tasks.length);
});

test('made again from the same pages, the tasks are the same bytes', async () => {
  const first = await deps.store.find(refOf('tasks').key);
  await deps.pool.query('delete from artifacts where key = $1', [refOf('tasks').key]);
  const again = await run(createTaskActivities(deps).tasks, refOf('tasks'));
  expect(again.digest).toBe(first?.digest);
});

test('the expert finds its answers through search and visit, and its demonstrations fit the limits', async () => {
  await run(createIndexActivities(deps).buildIndex, refOf('index'));
  const artifact = await run(createDemonstrationActivities(deps).demonstrations, refOf('cold_start.trajectories'));
  const body = await bodyOf<TrajectoriesBody>(artifact);
  expect(body.trajectories).toBe(DEMONSTRATIONS);
  const rows = await rowsOf(artifact);
  expect(rows.length).toBe(body.instances);
  for (const row of rows) {
    expect(row.mask.length).toBe(row.token_ids.length);
    expect(row.token_ids.length).toBeLessThanOrEqual(1536);
    expect(
      row.spans.filter(({ kind }) => kind === 'action').every(({ start, end }) => end - start <= agent.max_turn_tokens),
    ).toBe(true);
    expect(row.score).toMatchObject({ exact_match: 1, format_valid: true });
  }
  expect(new Set(rows.map(({ trajectory_id }) => trajectory_id)).size).toBe(rows.length);
}, 1_500_000);

async function rowsOf(artifact: ArtifactRef): Promise<Trajectory[]> {
  const rows: Trajectory[] = [];
  for await (const row of readParquet<Trajectory>(
    await deps.store.openFile(await deps.store.manifest(artifact), 'trajectories.parquet'),
  ))
    rows.push(row);
  return rows;
}

/** Rollouts as a shard would hold them, made from a demonstration: right, wrong, without an answer, broken. */
async function shardOf(rows: Trajectory[]): Promise<{ blob: string; trajectories: number; failed: number }> {
  const path = join(work, `shard-${rows.length}-${rows[0]?.group_id.replaceAll('/', '-')}.parquet`);
  await writeParquet(path, rows, trajectoryColumns);
  return {
    blob: await deps.store.putBlob(path),
    trajectories: rows.length,
    failed: rows.filter(({ termination }) => termination === 'failed').length,
  };
}

const outcomes = {
  right: {
    answer: 'x',
    reward: { outcome: 1, turns: [] },
    score: { exact_match: 1, f1: 1, format_valid: true, answer_in_observation: true },
    termination: 'answer' as const,
  },
  wrong: {
    answer: 'y',
    reward: { outcome: 0, turns: [] },
    score: { exact_match: 0, f1: 0, format_valid: true, answer_in_observation: false },
    termination: 'answer' as const,
  },
  unfinished: {
    answer: null,
    reward: { outcome: -1, turns: [] },
    score: { exact_match: 0, f1: 0, format_valid: false, answer_in_observation: false },
    termination: 'max_turns' as const,
  },
  broken: {
    answer: null,
    reward: { outcome: 0, turns: [] },
    score: { exact_match: 0, f1: 0, format_valid: false, answer_in_observation: false },
    termination: 'failed' as const,
    failure_class: 'engine',
  },
};
type Outcome = keyof typeof outcomes;

async function rollouts(task_id: string, group: string, ends: readonly Outcome[]): Promise<Trajectory[]> {
  const [like] = await rowsOf((await deps.store.find(refOf('cold_start.trajectories').key)) as ArtifactRef);
  return ends.map((end, sample) => ({
    ...(like as Trajectory),
    ...outcomes[end],
    task_id,
    group_id: `${group}${task_id}`,
    sample,
    trajectory_id: `${group}${task_id}/${sample}`,
  }));
}

test('a profile keeps what is partly solvable and masks what the infrastructure broke', async () => {
  const shards = [
    await shardOf([
      ...(await rollouts('never', '', ['wrong', 'wrong', 'unfinished', 'wrong'])),
      ...(await rollouts('sometimes', '', ['right', 'wrong', 'wrong', 'broken'])),
      ...(await rollouts('always', '', ['right', 'right', 'right', 'right'])),
    ]),
  ];
  const artifact = await run(createPublishProfileActivities(deps).publishProfile, {
    node: refOf('stage1.profile'),
    shards,
  });
  expect(await bodyOf(artifact)).toMatchObject({
    tasks: 3,
    rollouts: 11,
    never: 1,
    sometimes: 1,
    always: 1,
    kept: 1,
    saved: 0,
    mix: { unknown: { before: 1, after: 1 } },
  });
  const path = await deps.store.openFile(await deps.store.manifest(artifact), 'pass_rates.jsonl');
  const rates = (await readFile(path, 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as PassRate);
  expect(rates.find(({ task_id }) => task_id === 'sometimes')).toMatchObject({
    rollouts: 3,
    masked: 1,
    passes: 1,
    kept: true,
    low: expect.closeTo(0.03875, 4), // scipy.stats.beta.ppf(0.025, 1.5, 2.5)
    high: expect.closeTo(0.82326, 4),
  });
});

test('too few partly solvable tasks for one step end at a gate, with the counts', async () => {
  const shards = [
    await shardOf([
      ...(await rollouts('never', '', ['wrong', 'wrong'])),
      ...(await rollouts('sometimes', '', ['right', 'wrong'])),
      ...(await rollouts('broken', '', ['broken', 'broken'])),
    ]),
  ];
  const refused = run(createPublishProfileActivities(deps).publishProfile, { node: refOf('stage2.profile'), shards });
  await expect(refused).rejects.toMatchObject({
    code: 'TOO_FEW_SOLVABLE',
    message: expect.stringContaining(
      '1 of 3 tasks are partly solvable and a step needs 2: 1 never solved, 1 sometimes, 0 always',
    ),
  });
  expect(await deps.store.find(refOf('stage2.profile').key)).toBeNull();
});

test('a benchmark counts what never came as wrong, leaves out what broke, and stands beside its baselines', async () => {
  const heldOut = (await tasksOf((await deps.store.find(refOf('tasks').key)) as ArtifactRef))
    .filter(({ split }) => split === 'held_out')
    .slice(0, 4);
  const ends: Outcome[][] = [
    ['right', 'right'],
    ['right', 'wrong'],
    ['unfinished', 'wrong'],
    ['broken', 'right'],
  ];
  const open = (
    await Promise.all(heldOut.map(({ task_id }, index) => rollouts(task_id, '', ends[index] as Outcome[])))
  ).flat();
  const closed = (await Promise.all(heldOut.map(({ task_id }) => rollouts(task_id, 'closed_book/', ['wrong'])))).flat();
  const artifact = await run(createPublishBenchmarkActivities(deps).publishBenchmark, {
    node: refOf('held_out.base'),
    shards: [await shardOf(open), await shardOf(closed)],
  });

  const body = await bodyOf<BenchmarkBody>(artifact);
  expect(body.results['avg_at_2']?.value).toBeCloseTo((1 + 0.5 + 0 + 1) / 4);
  expect(body.results['pass_at_2']?.value).toBeCloseTo((1 + 1 + 0) / 3); // the fourth has one sample left
  expect(body).toMatchObject({ questions: 4, unfinished: 1, masked: 1 });
  expect(Object.keys(body.baselines).sort()).toEqual([
    'answer_from_first_result',
    'closed_book',
    'most_frequent_answer',
  ]);
  expect(body.baselines['closed_book']?.value).toBe(0);
  expect(Object.keys(body.groups)).toEqual(expect.arrayContaining(['capability/direct_retrieval']));

  const report = await run(createReportActivities(deps).report, refOf('report'));
  const text = await readFile(await deps.store.openFile(await deps.store.manifest(report), 'report.md'), 'utf8');
  expect(text).toContain('## held_out');
  expect(text).toContain('as each package declares');
});
