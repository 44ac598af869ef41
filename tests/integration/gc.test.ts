// Collecting garbage on real PostgreSQL and Milvus Lite: what is kept stays whole, what is dropped is gone everywhere.
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { StepLedger } from '../../activities/adapters/step-ledger.ts';
import { checkArtifact } from '../../cli/artifact-check.ts';
import { collectGarbage } from '../../cli/garbage/collect.ts';
import { whileNobodyCollects } from '../../cli/garbage/lock.ts';
import { saveWorld } from '../../cli/named-worlds.ts';
import { connectStack, type Stack } from '../../cli/open-stack.ts';
import { collectionName } from '../../environments/world/build-index.ts';
import { ChunkIndex } from '../../environments/world/index.ts';
import { loadCorpus } from '../../environments/world/load-corpus.ts';
import { connectMilvus } from '../../environments/world/milvus.ts';
import type { CorpusBody, IndexBody } from '../../schemas/artifact.ts';
import { contentKey } from '../../schemas/canonical.ts';
import type { Plan } from '../../schemas/plan.ts';
import { startStack, type TestStack } from '../services.ts';
import { type ToyNode, toyPlan } from './toy-run.ts';

const DENSE = { type: 'hnsw', metric: 'cosine' } as const;
/** Everything that is there counts as old enough. */
const policy = (runs: number | null) => ({ runs, since: null, grace: new Date(Date.now() + 60_000) });

let services: TestStack;
let stack: Stack;
let milvus: MilvusClient;
let folder: string;
let merged: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'exp-gc-'));
  merged = join(folder, 'merged');
  services = await startStack(['postgres', 'milvus']);
  stack = (await connectStack(services.connections)) as Stack;
  milvus = connectMilvus(services.connections.milvus);
});

afterAll(async () => {
  await milvus?.closeConnection();
  await stack?.close();
  await services?.stop();
  rmSync(folder, { recursive: true, force: true });
});

const collect = (runs: number | null, apply: boolean) =>
  collectGarbage({ pool: stack.pool, store: stack.store, milvus, merged }, policy(runs), apply);

/** Pages of these names, in PostgreSQL as the corpus activity brings them there. */
async function corpusOf(key: string, names: readonly string[]): Promise<CorpusBody> {
  const path = join(folder, `${key}.jsonl`);
  const lines = names.map((name) =>
    JSON.stringify({ url: `https://${name}.example/`, title: name, text: `on ${name}` }),
  );
  writeFileSync(path, `${lines.join('\n')}\n`);
  return loadCorpus({
    pool: stack.pool,
    corpusKey: key,
    sources: {
      docs: {
        kind: 'jsonl',
        fields: { url: 'url', id: 'id', title: 'title', text: 'text' },
        limit: null,
        licence: 'CC0-1.0',
        provenance: 'written for this test',
      },
    },
    limit: { pages: null, chunks: null },
    nearDuplicates: null,
    paths: { docs: path },
    expectRecords: undefined,
    countChunks: null,
    signal: new AbortController().signal,
    onProgress: () => {},
  } as Parameters<typeof loadCorpus>[0]);
}

/** One chunk a page, with vectors written by hand. */
async function indexOf(key: string, corpus: CorpusBody, names: readonly string[]): Promise<IndexBody> {
  const fingerprint = {
    embedder: 'by hand',
    embedder_sha256: 'a'.repeat(64),
    precision: 'fp32',
    dimension: 4,
    chunk: { tokens: 8, overlap: 0 },
    corpus_digest: corpus.fingerprint,
  };
  const index = new ChunkIndex(milvus, collectionName(key), DENSE);
  await index.create(fingerprint, 'none');
  const rows = names.map((name, ord) => ({
    url: `https://${name}.example/`,
    title: name,
    ord,
    start: 0,
    end: 4,
    text: name,
    dense: Float32Array.from([1, ord, 0, 0]),
  }));
  await index.upsert(rows, 'none');
  await index.flush();
  await stack.pool.query('insert into index_shards (index_key, shard, chunks) values ($1, 0, $2)', [key, names.length]);
  return { collection: index.collection, chunks: names.length, fingerprint };
}

const keyIn = (plan: Plan, id: string): string => plan.arms[0]?.nodes.find((node) => node.id === id)?.key ?? '';

async function publish(key: string, kind: string, body: object, text?: string): Promise<void> {
  const file = join(folder, `${key}.txt`);
  if (text !== undefined) writeFileSync(file, text);
  const files: Record<string, string> = text === undefined ? {} : { 'file.txt': file };
  await stack.store.publish({ key, kind, inputs: [], files, body, metrics: [] });
}

/** A run with its own corpus and index, a node that all runs share, and a stage with its ledger, journal and shards. */
async function makeRun(name: string, pages: readonly string[], daysAgo: number) {
  const nodes: ToyNode[] = [
    { id: 'corpus', kind: 'corpus', salt: name },
    { id: 'index', kind: 'index', inputs: ['corpus'], salt: name },
    { id: 'tasks', kind: 'tasks', salt: 'shared' },
    { id: 'stage1', kind: 'rl', inputs: ['tasks', 'index'], salt: name },
  ];
  const plan = toyPlan(name, { main: nodes });
  const [corpusKey, indexKey, stage] = ['corpus', 'index', 'stage1'].map((id) => keyIn(plan, id)) as [
    string,
    string,
    string,
  ];
  const corpus = await corpusOf(corpusKey, pages);
  await publish(corpusKey, 'corpus', corpus);
  await publish(indexKey, 'index', await indexOf(indexKey, corpus, pages));
  await publish(keyIn(plan, 'tasks'), 'tasks', { tasks: 1 }, 'shared tasks');
  await publish(stage, 'rl', { adapters: [] }, `weights of ${name}`);

  const { store, pool } = stack;
  const batch = await store.putBlob(Buffer.from(`batch of ${name}`));
  await new StepLedger(pool).plan(stage, 1, batch, 'base');
  const trajectory_id = `${stage.slice(0, 12)}/1/q/0`;
  const request = await store.putBlob(Buffer.from(`{"batch_size":1}\n${JSON.stringify({ trajectory_id })}\n`));
  const shard = await store.putBlob(Buffer.from(`shard of ${name}`));
  await pool.query(
    `insert into rollout_shards (request, batch, checkpoint_digest, blob, trajectories, failed) values ($1, 0, 'c', $2, 1, 0)`,
    [request, shard],
  );
  await pool.query(`insert into turns (trajectory_id, turn, record) values ($1, 0, '{}')`, [trajectory_id]);
  const plan_blob = await store.putJson(plan);
  await pool.query(
    `insert into runs (id, run_key, name, profile, plan_blob, status, created_at, ended_at)
     values ($1, $2, $1, 'local', $3, 'done', now() - $4 * interval '1 day', now() - $4 * interval '1 day')`,
    [name, plan.run_key, plan_blob, daysAgo],
  );
  await pool.query(`insert into spend (run, node_key, unit) values ($1, $2, 'batch 0')`, [name, stage]);
  const blobs = { batch, request, shard, plan_blob };
  return { plan, corpusKey, indexKey, stage, blobs };
}

const has = (sha256: string): Promise<boolean> => stack.store.checkBlob(sha256).then((state) => state !== 'missing');

async function counted(sql: string, ...values: unknown[]): Promise<number> {
  return Number((await stack.pool.query<{ count: string }>(`select count(*) from ${sql}`, values)).rows[0]?.count);
}

async function hasCollection(key: string): Promise<boolean> {
  return new ChunkIndex(milvus, collectionName(key), DENSE).exists();
}

test('what a dropped run alone had is gone; all that the others have stays whole', async () => {
  const old = await makeRun('old', ['only_old', 'in_both'], 9);
  const recent = await makeRun('recent', ['in_both', 'only_recent'], 1);
  const worldKey = contentKey('a world');
  const worldCorpus = await corpusOf(worldKey, ['of_the_world']);
  const worldIndex = contentKey('its index');
  const parameters = { dense: DENSE } as never;
  await saveWorld(stack.pool, {
    name: 'by_hand',
    corpus: worldCorpus,
    index: await indexOf(worldIndex, worldCorpus, ['of_the_world']),
    parameters,
  });
  const orphan = await stack.store.putBlob(Buffer.from('nobody names this'));
  const active = await makeRun('active', ['of_active'], 0);
  await sleep(20);
  await stack.pool.query(`update runs set status = 'running', created_at = now(), ended_at = null where id = 'active'`);
  await sleep(20);
  const unnamed = await stack.store.putBlob(Buffer.from('stored by the active run, not named yet'));

  const everything = await counted('corpus_pages');
  const seen = await collect(2, false);
  expect(seen.runs).toEqual(['old']);
  expect(seen.amounts).toMatchObject({
    runs: { count: 1 },
    artifacts: { count: 3 },
    corpus_pages: { count: 2 },
    pages: { count: 1 },
    collections: { count: 1 },
    steps: { count: 1 },
    turns: { count: 1 },
    rollout_shards: { count: 1 },
    // Ledger, request, shard, plan, three manifests and a file of the old run; the orphan; and manifests of shared tasks
    // that came second and third.
    blobs: { count: 8 + 1 + 2 },
  });
  expect(await counted('corpus_pages')).toBe(everything);
  expect(await hasCollection(old.indexKey)).toBe(true);
  expect(await has(orphan)).toBe(true);

  const done = await collect(2, true);
  expect(done).toEqual(seen);

  expect(await counted('runs')).toBe(2);
  expect(await counted('spend')).toBe(2);
  expect(await counted('corpus_pages where corpus_key = $1', old.corpusKey)).toBe(0);
  expect(await counted(`pages where title = 'only_old'`)).toBe(0);
  expect(await counted(`pages where title = 'in_both'`)).toBe(1);
  expect(await hasCollection(old.indexKey)).toBe(false);
  expect(await counted('steps where stage_key = $1', old.stage)).toBe(0);
  expect(await counted(`turns where starts_with(trajectory_id, $1)`, old.stage.slice(0, 12))).toBe(0);
  for (const blob of [...Object.values(old.blobs), orphan]) expect(await has(blob)).toBe(false);

  const kept = await stack.store.list({ limit: 100 });
  expect(kept).toHaveLength(7); // tasks once; corpus, index and stage of two runs
  for (const row of kept) expect(await checkArtifact(stack, row)).toMatchObject({ broken: [] });
  for (const run of [recent, active]) {
    for (const blob of Object.values(run.blobs)) expect(await has(blob)).toBe(true);
    expect(await counted('steps where stage_key = $1', run.stage)).toBe(1);
    expect(await counted(`turns where starts_with(trajectory_id, $1)`, run.stage.slice(0, 12))).toBe(1);
  }
  expect(await has(unnamed)).toBe(true);
  expect(await counted('corpus_pages where corpus_key = $1', worldKey)).toBe(1);
  expect(await hasCollection(worldIndex)).toBe(true);

  const again = await collect(2, true);
  expect(Object.values(again.amounts).every(({ count }) => count === 0)).toBe(true);
});

test('without a rule every run is kept', async () => {
  const runs = await counted('runs');
  expect((await collect(null, true)).runs).toEqual([]);
  expect(await counted('runs')).toBe(runs);
});

test('nothing is collected while a world is built by hand', async () => {
  await whileNobodyCollects(stack.pool, () => expect(collect(null, true)).rejects.toThrow('GC_BUSY'));
});

test('merged weights that an engine serves, or has just served, stay', async () => {
  const cache = join(merged, 'bfloat16');
  const [served, replaced, unused] = ['served', 'replaced', 'unused'].map(contentKey) as [string, string, string];
  for (const name of [served, replaced, unused]) {
    mkdirSync(join(cache, name), { recursive: true });
    writeFileSync(join(cache, name, 'probe.json'), '{}');
  }
  await stack.pool.query(`insert into leases (resource, state) values ('engine/e', $1), ('trainer/t', $2)`, [
    JSON.stringify({ boot: 'b', checkpoint: served, replacing: { model_dir: join(cache, replaced), logprobs: [] } }),
    JSON.stringify({ stage: unused }),
  ]);
  const { amounts } = await collect(null, true);
  expect(amounts['merged_weights']).toEqual({ count: 1, bytes: 2 });
  expect(readdirSync(cache).sort()).toEqual([served, replaced].sort());
});
