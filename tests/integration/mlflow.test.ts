import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { Mlflow } from '../../activities/adapters/mlflow.ts';
import {
  createMlflowDelivery,
  openDedup,
  REFUSED_CODES,
  type TrackingPayload,
} from '../../activities/adapters/mlflow-delivery.ts';
import { finiteMetrics, paramsOf, splitBatches, tagsOf } from '../../activities/adapters/mlflow-limits.ts';
import { Outbox } from '../../activities/adapters/outbox.ts';
import type { Metric } from '../../schemas/artifact.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { createMlflowServer, type MlflowServer, spoiltProxy } from './mlflow-server.ts';
import { startPostgres, type TestService } from './toy-services.ts';

let postgres: TestService;
let pool: pg.Pool;
let server: MlflowServer;
let mlflow: Mlflow;

beforeAll(async () => {
  [postgres, server] = await Promise.all([startPostgres(), createMlflowServer()]);
  pool = new pg.Pool({ connectionString: postgres.address });
  pool.on('error', () => {}); // the server stops before the last socket has closed
  await server.start();
  mlflow = new Mlflow({ url: server.url, pool });
});

afterAll(async () => {
  await server?.close();
  await pool?.end();
  await postgres?.stop();
});

const START = 1_700_000_000_000;
const curve = (name: string, steps: number): Metric[] =>
  Array.from({ length: steps }, (_, step) => ({
    name,
    step,
    value: 1 / (step + 3),
    timestamp_ms: START + 1000 * step,
  }));

async function newRun(
  path: string,
  client = mlflow,
): Promise<{ experimentId: string; run_id: string; artifact_uri: string }> {
  const experimentId = await client.ensureExperiment('adapter');
  const run = await client.ensureRun({ experimentId, name: path, path, tags: [], parentRunId: null, startTime: START });
  return { experimentId, ...run };
}

test('the same log_batch twice leaves one point per step', async () => {
  const { run_id } = await newRun('twice');
  const [batch] = splitBatches({
    metrics: curve('train/loss', 50),
    params: paramsOf({ lr: 1e-5 }),
    tags: tagsOf({ 'exp.key': 'k' }),
  });

  await mlflow.logBatch(run_id, batch!);
  await mlflow.logBatch(run_id, batch!);
  await mlflow.logBatch(run_id, { metrics: curve('train/loss', 60), params: [], tags: [] });

  const points = await server.query(
    `select step, count(*), min(value) from metrics where run_uuid = '${run_id}' group by step`,
  );
  expect(points).toHaveLength(60);
  expect(points.every(([, count]) => count === 1)).toBe(true);
  expect(points[7]).toEqual([7, 1, 0.1]);
  expect(await server.query(`select key, value from params where run_uuid = '${run_id}'`)).toEqual([['lr', '0.00001']]);
});

test('two that ensure one run at the same time get the same one', async () => {
  const other = new Mlflow({ url: server.url, pool });
  const experimentId = await mlflow.ensureExperiment('race');
  const wanted = { experimentId, name: 'race', path: 'race', tags: [], parentRunId: null, startTime: START };

  const runs = await Promise.all([mlflow, other, mlflow, other].map((client) => client.ensureRun(wanted)));

  expect(new Set(runs.map(({ run_id }) => run_id)).size).toBe(1);
  expect(await mlflow.searchRuns(experimentId, { 'exp.path': 'race' })).toHaveLength(1);
});

test('a deleted experiment is restored under its name', async () => {
  const id = await mlflow.ensureExperiment('came-back');
  await fetch(`${server.url}/api/2.0/mlflow/experiments/delete`, {
    method: 'POST',
    body: JSON.stringify({ experiment_id: id }),
    headers: { 'content-type': 'application/json' },
  });
  expect(await mlflow.ensureExperiment('came-back')).toBe(id);
});

test('2,500 points, 130 params with hostile keys and values, and a number that is none all arrive', async () => {
  const { run_id } = await newRun('hostile');
  const document = {
    ...Object.fromEntries(Array.from({ length: 130 }, (_, i) => [`p${i}`, i])),
    'a/../b': 1,
    'x@y\nz': 'line\nbreak \0 \ud800',
    empty: '',
    long: 'ü'.repeat(7000),
    ['k'.repeat(300)]: 'v',
    api_key: 'sk-abcdefghijklmnopqrstuvwxyz0123',
    judge: { url: 'https://user:pass-word@host/x', key: { env: 'JUDGE_API_KEY' } },
    max_turn_tokens: 160,
  };
  const metrics = finiteMetrics([
    ...curve('m', 2500),
    { name: 'eval/pass@4', step: 0, value: Number.POSITIVE_INFINITY, timestamp_ms: START },
  ]);

  for (const batch of splitBatches({
    metrics,
    params: paramsOf(document),
    tags: tagsOf({ 'exp.error': 'x'.repeat(9000) }),
  })) {
    await mlflow.logBatch(run_id, batch);
  }

  const params = new Map(
    (await server.query(`select key, value from params where run_uuid = '${run_id}'`)) as [string, string][],
  );
  expect(params.size).toBe(139);
  expect(params.get('api_key')).toBe('[redacted]');
  expect(params.get('judge.url')).toBe('https://[redacted]@host/x');
  expect(params.get('judge.key.env')).toBe('JUDGE_API_KEY');
  expect(params.get('max_turn_tokens')).toBe('160');
  expect(params.get('long')).toMatch(/^ü+… \[7000 characters, sha256 [0-9a-f]{12}\]$/);
  expect([...params.keys()].filter((key) => /^a\/_\/b-[0-9a-f]{12}$/.test(key))).toHaveLength(1);
  expect(
    await server.query(`select count(*), count(distinct step) from metrics where run_uuid = '${run_id}' and key = 'm'`),
  ).toEqual([[2500, 2500]]);
  expect(await server.query(`select key, value from metrics where run_uuid = '${run_id}' and key <> 'm'`)).toEqual([
    [expect.stringMatching(/^eval\/pass_at_4_nan_count/), 1],
  ]);
});

test('an artifact goes through the proxy and can be put again', async () => {
  const run = await newRun('files');
  const file = join(temporaryFolder('exp-artifact-'), 'held out.json');
  await writeFile(file, '{"a": 1}\n');

  await mlflow.uploadArtifact(run, 'samples/held out.json', file);
  await mlflow.uploadArtifact(run, 'samples/held out.json', file);

  const listed = await fetch(`${server.url}/api/2.0/mlflow/artifacts/list?run_id=${run.run_id}&path=samples`);
  expect(await listed.json()).toMatchObject({ files: [{ path: 'samples/held out.json', file_size: 9 }] });
});

test('what MLflow will never take is refused, what it cannot take now is an outage', async () => {
  const { run_id } = await newRun('errors');
  const bad = { metrics: [{ name: 'a@b', step: 0, value: 1, timestamp_ms: START }], params: [], tags: [] };
  await expect(mlflow.logBatch(run_id, bad)).rejects.toMatchObject({ code: 'MLFLOW_REFUSED' });
  await expect(
    mlflow.logBatch('0'.repeat(32), { metrics: [], params: [], tags: tagsOf({ a: 'b' }) }),
  ).rejects.toMatchObject({ code: 'MLFLOW_NOT_FOUND' });
  const nobody = new Mlflow({ url: 'http://127.0.0.1:9', pool });
  await expect(nobody.ensureExperiment('x')).rejects.toMatchObject({ code: 'MLFLOW_UNAVAILABLE' });
});

/** An outbox that drains to `url` until the returned stop is called. */
function draining(url: string): { outbox: Outbox<TrackingPayload>; lines: string[]; stop(): Promise<void> } {
  const lines: string[] = [];
  const store = { openBlob: () => Promise.reject(new Error('no files here')) };
  const deliver = createMlflowDelivery({ pool, mlflow: new Mlflow({ url, pool, timeoutMs: 5000 }), store });
  const outbox = new Outbox<TrackingPayload>({
    pool,
    deliver,
    refusedCodes: REFUSED_CODES,
    log: (line) => lines.push(line),
  });
  const stopping = new AbortController();
  const drained = outbox.drain({ signal: stopping.signal });
  const stop = async (): Promise<void> => {
    stopping.abort();
    await drained;
  };
  onTestFinished(stop);
  return { outbox, lines, stop };
}

async function enqueueRun(outbox: Outbox<TrackingPayload>, run: string, steps: number): Promise<void> {
  await outbox.enqueue(openDedup(run), run, {
    op: 'open',
    path: run,
    parent: null,
    experiment: 'outbox',
    name: run,
    tags: tagsOf({ 'exp.run': run }),
    start_ms: START,
  });
  for (let from = 0; from < steps; from += 10) {
    const metrics = curve('train/loss', steps).slice(from, from + 10);
    await outbox.enqueue(`${run} ${from}`, run, { op: 'log', path: run, batch: { metrics, params: [], tags: [] } });
  }
  await outbox.enqueue(`end ${run}`, run, { op: 'status', path: run, status: 'FINISHED', at_ms: START + 5000 });
  await outbox.enqueue(`settle ${run}`, run, { op: 'settle', path: run, at_ms: START + 5000 });
}

const storedRuns = (name: string): Promise<unknown[][]> =>
  server.query(
    `select r.status, r.end_time, (select count(*) from metrics m where m.run_uuid = r.run_uuid),
       (select count(distinct step) from metrics m where m.run_uuid = r.run_uuid)
     from runs r where r.name = '${name}' and r.lifecycle_stage = 'active'`,
  );

test('what is written while MLflow is down arrives once, in order, when it is back', async () => {
  await server.stop();
  const first = draining(server.url);
  await enqueueRun(first.outbox, 'outage', 100);
  expect(await first.outbox.flush('outage', 1500)).toBe(false);
  await first.stop(); // its worker dies in the outage, another goes on

  const second = draining(server.url);
  await server.start();
  expect(await second.outbox.flush('outage', 60_000)).toBe(true);
  await second.stop();

  expect(await storedRuns('outage')).toEqual([['FINISHED', START + 5000, 100, 100]]);
  expect([...first.lines, ...second.lines].join('\n')).toMatch(/outage waits, work goes on/);
});

test('a server that carries out requests but answers 500 leaves one run and no double points', async () => {
  const { url, server: proxy } = await spoiltProxy(server.url, (request) => (request * 7) % 5 < 2);
  const { outbox, stop } = draining(url);
  await enqueueRun(outbox, 'spoilt', 40);

  expect(await outbox.flush('spoilt', 60_000)).toBe(true);
  await stop();
  proxy.close();

  expect(await storedRuns('spoilt')).toEqual([['FINISHED', START + 5000, 40, 40]]);
});

test('two workers drain one outbox, and a run that cannot be sent holds up no other', async () => {
  const [a, b] = [draining(server.url), draining(server.url)];
  await a.outbox.enqueue('stuck 1', 'stuck', { op: 'file', path: 'stuck', name: 'x', blob: 'y' });
  await enqueueRun(a.outbox, 'shared', 30);
  await enqueueRun(b.outbox, 'shared', 30); // a retried activity: the same payloads

  expect(await b.outbox.flush('shared', 30_000)).toBe(true);
  await Promise.all([a.stop(), b.stop()]);

  expect(await storedRuns('shared')).toEqual([['FINISHED', START + 5000, 30, 30]]);
  const { rows } = await pool.query("select error from outbox where run_id = 'stuck'");
  expect(rows[0].error).toMatch(/nothing says how this run is to be opened/);
});

test('a server whose store was replaced gets the whole run again', async () => {
  const before = draining(server.url);
  await enqueueRun(before.outbox, 'moved', 20);
  expect(await before.outbox.flush('moved', 30_000)).toBe(true);
  await before.stop();
  const replacement = await createMlflowServer();
  await replacement.start();
  try {
    const after = draining(replacement.url);
    await after.outbox.enqueue('moved late', 'moved', {
      op: 'log',
      path: 'moved',
      batch: { metrics: curve('eval/late', 1), params: [], tags: [] },
    });
    expect(await after.outbox.flush('moved', 60_000)).toBe(true);
    await after.stop();
    expect(await replacement.query('select status from runs')).toEqual([['FINISHED']]);
    expect(await replacement.query('select key, count(*) from metrics group by key order by key')).toEqual([
      ['eval/late', 1],
      ['train/loss', 20],
    ]);
  } finally {
    await replacement.close();
  }
});
