import { createHash } from 'node:crypto';
import { mkdtempSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { DirectoryBlobStore } from '../../activities/adapters/blob-store.ts';
import { Mlflow, type MlflowRun } from '../../activities/adapters/mlflow.ts';
import {
  createMlflowDelivery,
  REFUSED_CODES,
  type TrackingPayload,
} from '../../activities/adapters/mlflow-delivery.ts';
import { Outbox } from '../../activities/adapters/outbox.ts';
import type { NodeOutcome } from '../../activities/index.ts';
import { NodeProgress } from '../../activities/node-progress.ts';
import { PlanReader } from '../../activities/plan-reader.ts';
import { createLiveTracking, createTrackingActivities } from '../../activities/tracking.ts';
import type { ArtifactRef, BenchmarkBody } from '../../schemas/artifact.ts';
import type { NodeKind, Plan, PlanNode } from '../../schemas/plan.ts';
import { createMlflowServer, type MlflowServer } from './mlflow-server.ts';
import { startPostgres, type TestService } from './toy-services.ts';

const RUN = 'quickstart-261121-abc123';
const START = 1_700_000_000_000;
const sha = (text: string): string => createHash('sha256').update(text).digest('hex');

const planNode = (id: string, kind: NodeKind, inputs: string[], parameters: PlanNode['parameters']): PlanNode => ({
  id,
  kind,
  kind_version: 1,
  key: sha(id),
  inputs,
  parameters,
  files: [],
  seed: 17,
  unkeyed: {},
});
const nodes = [
  planNode('corpus', 'corpus', [], {
    sources: { docs: { kind: 'installed_packages', ecosystems: ['npm', 'python'] } },
  }),
  planNode('stage1', 'rl', ['corpus'], { optimizer: { learning_rate: 1e-5 }, until: { steps: 3 } }),
  planNode('held_out.base', 'benchmark', ['corpus'], { samples: 2 }),
  planNode('held_out.stage1', 'benchmark', ['stage1'], { samples: 2 }),
];
const plan: Plan = {
  api_version: 'exp/v1',
  run_key: sha('run'),
  name: 'quickstart',
  profile: 'local',
  spec_path: 'experiments/quickstart.yaml',
  spec: {
    name: 'quickstart',
    description: 'The whole recipe in miniature.',
    seed: 17,
    agent: { max_turns: 4 },
    judge: { token: 'hf_abcdefghijklmnopqrstuvwx' },
  },
  tracking: { mlflow_experiment: 'quickstart' },
  arms: [{ name: 'main', seed: 17, changes: {}, nodes }],
};

let postgres: TestService;
let server: MlflowServer;
let pool: pg.Pool;
let folder: string;
let mlflow: Mlflow;
let store: ArtifactStore;
let progress: NodeProgress;
let planBlob: string;
let live: ReturnType<typeof createLiveTracking>;
let outbox: Outbox<TrackingPayload>;
let activities: ReturnType<typeof createTrackingActivities>;
const stopping = new AbortController();
let drained: Promise<void>;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'exp-tracking-'));
  [postgres, server] = await Promise.all([startPostgres(), createMlflowServer()]);
  await server.start();
  pool = new pg.Pool({ connectionString: postgres.address });
  pool.on('error', () => {}); // the server stops before the last socket has closed
  store = new ArtifactStore(pool, new DirectoryBlobStore(join(folder, 'blobs')));
  progress = new NodeProgress(pool);
  planBlob = await store.putJson(plan);
  mlflow = new Mlflow({ url: server.url, pool });
  const deliver = createMlflowDelivery({ pool, mlflow, store });
  outbox = new Outbox<TrackingPayload>({
    pool,
    deliver,
    refusedCodes: REFUSED_CODES,
    log: (line) => console.log(line),
  });
  const deps = { pool, store, outbox, plans: new PlanReader(store) };
  activities = createTrackingActivities(deps);
  live = createLiveTracking(deps);
  drained = outbox.drain({ signal: stopping.signal });
  await pool.query(
    `insert into runs (id, run_key, name, profile, plan_blob) values ($1, $2, 'quickstart', 'local', $3)`,
    [RUN, plan.run_key, planBlob],
  );
});

afterAll(async () => {
  stopping.abort();
  await drained;
  await pool?.end();
  await Promise.all([server?.close(), postgres?.stop()]);
  await rm(folder, { recursive: true, force: true });
});

/** The activities as one execution of the run's workflow calls them. */
const as = (runId: string) => {
  const environment = new MockActivityEnvironment({ workflowExecution: { workflowId: `run/${RUN}`, runId } });
  return {
    started: () => environment.run(activities.trackRunStarted, { run: RUN, plan: planBlob }),
    node: (outcome: Omit<NodeOutcome, 'key'>) =>
      environment.run(activities.trackNode, {
        run: RUN,
        plan: planBlob,
        arm: 'main',
        outcome: { ...outcome, key: sha(outcome.id) },
      }),
    arm: (status: string) => environment.run(activities.trackArm, { run: RUN, arm: 'main', status }),
    finished: (status: string) => environment.run(activities.finishRun, { run: RUN, status }),
  };
};

async function publish(
  id: string,
  body: object,
  files: Record<string, string>,
  metrics: { name: string; value: number }[],
): Promise<ArtifactRef> {
  const paths: Record<string, string> = {};
  for (const [name, text] of Object.entries(files)) {
    paths[name] = join(folder, `${sha(id)}-${name}`);
    await writeFile(paths[name], text);
  }
  const kind = nodes.find((node) => node.id === id)?.kind as string;
  const points = metrics.map((metric) => ({ ...metric, step: 0, timestamp_ms: START }));
  return store.publish({ key: sha(id), kind, inputs: [], files: paths, body, metrics: points });
}

async function runsByPath(): Promise<Map<string, MlflowRun>> {
  const experimentId = await mlflow.ensureExperiment('quickstart');
  const runs = await mlflow.searchRuns(experimentId, { 'exp.run': RUN });
  return new Map(runs.map((run) => [run.tags['exp.path'] as string, run]));
}

const points = (run: MlflowRun | undefined): Promise<unknown[][]> =>
  server.query(`select key, step, value, timestamp from metrics where run_uuid = '${run?.run_id}' order by key, step`);

const results = (value: number): Partial<BenchmarkBody> => ({
  benchmark: 'held_out',
  results: { avg_at_2: { value, low: 0, high: 1 } },
});

test('a run is told as it goes: nested runs, curves while they grow, files, and how everything ended', async () => {
  const first = as('execution-1');
  await first.started();
  await outbox.flush(RUN, 60_000);
  const { rows } = await pool.query<{ mlflow_url: string }>('select mlflow_url from runs');
  expect(rows[0]?.mlflow_url).toMatch(new RegExp(`^${server.url}/#/experiments/\\d+/runs/[0-9a-f]{32}$`));

  const corpus = await publish('corpus', { pages: 3 }, {}, [{ name: 'corpus/pages', value: 3 }]);
  await first.node({ id: 'corpus', status: 'done', artifact: corpus, reused: true });

  const stage1 = nodes[1] as PlanNode;
  await progress.started({ ...stage1, plan: planBlob, arm: 'main' });
  await progress.record(stage1.key, 0, { 'train/loss': 0.5 });
  await live.trackRunning();
  await outbox.flush(RUN, 60_000);
  const growing = (await runsByPath()).get(`${RUN}/main/stage1`);
  expect(growing?.status).toBe('RUNNING');
  expect(await points(growing)).toEqual([['train/loss', 0, 0.5, expect.any(Number)]]);

  await progress.record(stage1.key, 1, { 'train/loss': 0.25 });
  await live.trackRunning();
  const base = await publish('held_out.base', results(0.1), { 'results.json': '{}', 'shard-0.parquet': 'x' }, [
    { name: 'eval/held_out/avg_at_2', value: 0.1 },
  ]);
  await first.node({ id: 'held_out.base', status: 'done', artifact: base });
  await first.node({
    id: 'stage1',
    status: 'failed',
    error: { code: 'TRAINER_DIED', message: 'it ended with signal 9' },
  });
  await first.node({ id: 'held_out.stage1', status: 'skipped' });
  await first.arm('failed');
  await first.finished('failed');
  expect(await outbox.flush(RUN, 60_000)).toBe(true);

  const runs = await runsByPath();
  const shown = [...runs].map(([path, run]) => [
    path,
    run.status,
    run.tags['exp.reused'],
    runs.get(path.slice(0, path.lastIndexOf('/')))?.run_id === run.tags['mlflow.parentRunId'],
  ]);
  expect(shown.sort()).toEqual([
    [RUN, 'FAILED', undefined, true],
    [`${RUN}/main`, 'FAILED', undefined, true],
    [`${RUN}/main/corpus`, 'FINISHED', 'true', true],
    [`${RUN}/main/held_out.base`, 'FINISHED', 'false', true],
    [`${RUN}/main/held_out.stage1`, 'KILLED', 'false', true],
    [`${RUN}/main/stage1`, 'FAILED', 'false', true],
  ]);
  expect(runs.get(`${RUN}/main/stage1`)?.tags).toMatchObject({
    'exp.error_code': 'TRAINER_DIED',
    'exp.status': 'failed',
    'exp.arm': 'main',
    'exp.key': stage1.key,
  });
  expect((await pool.query('select status from runs')).rows).toEqual([{ status: 'failed' }]);
});

test('after a resume the same runs go on to their true end, with one point per step', async () => {
  await pool.query("update runs set status = 'running', ended_at = null");
  const second = as('execution-2');
  await second.started();
  await outbox.flush(RUN, 60_000);
  expect((await runsByPath()).get(RUN)?.status).toBe('RUNNING');

  const { key } = nodes[1] as PlanNode;
  await progress.record(key, 2, { 'train/loss': 0.125 });
  const stage1 = await store.publish({
    key,
    kind: 'rl',
    inputs: [],
    files: {},
    body: { step: 3 },
    metrics: await progress.metrics(key),
  });
  const after = await publish('held_out.stage1', results(0.4), { 'samples.md': '# one\n' }, [
    { name: 'eval/held_out/avg_at_2', value: 0.4 },
  ]);
  await second.node({ id: 'stage1', status: 'done', artifact: stage1 });
  await second.node({ id: 'stage1', status: 'done', artifact: stage1 }); // its activity ran twice
  await second.node({ id: 'held_out.stage1', status: 'done', artifact: after });
  await second.arm('done');
  await second.finished('done');
  expect(await outbox.flush(RUN, 60_000)).toBe(true);

  const runs = await runsByPath();
  expect(runs.size).toBe(6);
  expect(new Set([...runs.values()].map(({ status }) => status))).toEqual(new Set(['FINISHED']));
  const curve = await points(runs.get(`${RUN}/main/stage1`));
  expect(curve.map(([name, step, value]) => [name, step, value])).toEqual([
    ['train/loss', 0, 0.5],
    ['train/loss', 1, 0.25],
    ['train/loss', 2, 0.125],
  ]);
  const compared = await points(runs.get(`${RUN}/main`));
  expect(compared.map(([name, step, value]) => [name, step, value])).toEqual([
    ['eval/held_out/avg_at_2', 0, 0.1],
    ['eval/held_out/avg_at_2', 1, 0.4],
  ]);
});

test('parameters and files stand where a reader looks for them, without secrets', async () => {
  const runs = await runsByPath();
  const params = async (path: string): Promise<unknown> =>
    Object.fromEntries(
      (await server.query(`select key, value from params where run_uuid = '${runs.get(path)?.run_id}'`)) as [
        string,
        string,
      ][],
    );
  expect(await params(RUN)).toEqual({
    name: 'quickstart',
    description: 'The whole recipe in miniature.',
    seed: '17',
    'agent.max_turns': '4',
    'judge.token': '[redacted]',
  });
  expect(await params(`${RUN}/main/stage1`)).toMatchObject({
    'optimizer.learning_rate': '0.00001',
    'until.steps': '3',
    kind: 'rl',
    seed: '17',
  });
  expect(await params(`${RUN}/main/corpus`)).toMatchObject({ 'sources.docs.ecosystems': '["npm","python"]' });

  const files = async (path: string): Promise<string[]> => {
    const answer = await fetch(`${server.url}/api/2.0/mlflow/artifacts/list?run_id=${runs.get(path)?.run_id}`);
    return ((await answer.json()) as { files: { path: string }[] }).files.map((file) => file.path).sort();
  };
  expect(await files(RUN)).toEqual(['plan.json', 'spec.yaml']);
  expect(await files(`${RUN}/main/held_out.base`)).toEqual(['manifest.json', 'results.json']);
  expect(await files(`${RUN}/main/held_out.stage1`)).toEqual(['manifest.json', 'samples.md']);
  const { rows } = await pool.query('select dedup, error from outbox where error is not null or sent_at is null');
  expect(rows).toEqual([]);
});
