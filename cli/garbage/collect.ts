/**
 * Removes what no kept run needs: its artifacts and their blobs, pages, indexes, ledgers and journals. Without `apply`
 * it only looks. What makes it safe beside running work stands at each step.
 */
import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import type { Pool, PoolClient } from 'pg';
import type { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { collectionName } from '../../environments/world/build-index.ts';
import { milvusCall } from '../../environments/world/milvus.ts';
import type { Manifest } from '../../schemas/artifact.ts';
import { namedBlobs, oldestInUse, sweepBlobs } from './blobs.ts';
import { droppedRuns, type KeepPolicy, KeptKeys } from './kept-runs.ts';
import { whileCollecting } from './lock.ts';
import { servedCheckpoints, sweepMergedWeights } from './merged-weights.ts';
import { type Amount, deleteRows, indexKeys, measureRows, recentKeys, storedKeys } from './node-rows.ts';
import { deletePages, measurePages } from './pages.ts';
import { deleteRolloutGarbage, findRolloutGarbage } from './rollout-data.ts';
import { inTransaction } from './transaction.ts';

export interface CollectDeps {
  pool: Pool;
  store: ArtifactStore;
  milvus: MilvusClient;
  /** Where merged weights are, below a folder for each number format. */
  merged: string;
}

export interface Collected {
  /** Runs that go, newest first. */
  runs: string[];
  /** What goes, or went, by what it is. */
  amounts: Record<string, Amount>;
  /** What was left alone, in words. */
  left: string[];
}

export function collectGarbage(deps: CollectDeps, policy: KeepPolicy, apply: boolean): Promise<Collected> {
  return whileCollecting(deps.pool, () => (apply ? collect(deps, policy) : look(deps, policy)));
}

async function look(deps: CollectDeps, policy: KeepPolicy): Promise<Collected> {
  const { pool, store } = deps;
  const runs = await droppedRuns(pool, policy);
  const kept = await keptKeys(deps, runs);
  const { keys, indexes, rollouts } = await garbageKeys(deps, kept, policy);
  const named = await namedBlobs(pool, store, { runs, keys, requests: rollouts.requests });
  const swept = await sweepBlobs(store, named, { before: await oldestInUse(pool, policy.grace), apply: false });
  const amounts = {
    runs: { count: runs.length, bytes: null },
    ...Object.fromEntries(await measureRows(pool, keys)),
    pages: await measurePages(pool, keys),
    collections: { count: (await collectionsThere(deps, indexes)).length, bytes: null },
    turns: rollouts.turns,
    rollout_shards: rollouts.shards,
    merged_weights: await sweepMerged(deps, policy, false),
  };
  return report(runs, amounts, swept);
}

async function collect(deps: CollectDeps, policy: KeepPolicy): Promise<Collected> {
  const { pool, store } = deps;
  const runs = await inTransaction(pool, (client) => deleteRuns(client, policy));
  const kept = await keptKeys(deps, runs);
  const { keys, indexes, rollouts } = await garbageKeys(deps, kept, policy);
  const amounts: Record<string, Amount> = {
    runs: { count: runs.length, bytes: null },
    ...Object.fromEntries(await measureRows(pool, keys)),
    pages: { count: 0, bytes: 0 },
    collections: { count: (await collectionsThere(deps, indexes)).length, bytes: null },
    turns: rollouts.turns,
    rollout_shards: rollouts.shards,
  };
  for (const key of keys) await deleteKey(deps, key, indexes.includes(key), kept);
  await deleteRolloutGarbage(pool, rollouts);
  amounts['pages'] = await deletePages(pool);
  amounts['merged_weights'] = await sweepMerged(deps, policy, true);

  // Named by what is there now: a run that came meanwhile has its rows, and what it stored is young.
  const named = await namedBlobs(pool, store, { runs: [], keys: [], requests: [] });
  const before = await oldestInUse(pool, policy.grace);
  return report(runs, amounts, await sweepBlobs(store, named, { before, apply: true }));
}

const sweepMerged = async ({ pool, merged }: CollectDeps, { grace }: KeepPolicy, apply: boolean): Promise<Amount> =>
  sweepMergedWeights(merged, await servedCheckpoints(pool), { before: grace, apply });

function report(runs: string[], amounts: Record<string, Amount>, blobs: Amount | null): Collected {
  if (blobs !== null) return { runs, amounts: { ...amounts, blobs }, left: [] };
  return {
    runs,
    amounts,
    left: ['blobs: this store does not say which are in use by now; its own rules may expire them'],
  };
}

/** Runs go first and at once: from here on none of them can be resumed. What MLflow was not told yet stays. */
async function deleteRuns(client: PoolClient, policy: KeepPolicy): Promise<string[]> {
  await client.query('lock table runs in share row exclusive mode');
  const runs = await droppedRuns(client, policy);
  await client.query('delete from runs where id = any($1)', [runs]);
  for (const table of ['budgets', 'spend', 'subscriptions'])
    await client.query(`delete from ${table} where run = any($1)`, [runs]);
  await client.query('delete from outbox where run_id = any($1) and sent_at is not null', [runs]);
  await client.query(
    `delete from tracked_runs where run_id = any($1)
     and not exists (select 1 from outbox where outbox.run_id = tracked_runs.run_id)`,
    [runs],
  );
  return runs;
}

/** Keys of kept runs and of worlds built by hand, and those of the artifacts that theirs were made from. */
async function keptKeys({ pool, store }: CollectDeps, dropped: readonly string[]): Promise<KeptKeys> {
  const kept = new KeptKeys(store, dropped);
  await kept.refresh(pool);
  const worlds = await pool.query<{ key: string }>(
    `select corpus->>'corpus_key' as key from worlds
     union select index_key from index_shards, worlds
       where left(index_key, 40) = substr(worlds.index->>'collection', length('exp_') + 1)`,
  );
  for (const { key } of worlds.rows) kept.keys.add(key);
  for (let next = [...kept.keys]; next.length > 0; ) {
    const found = await store.findAll(next);
    next = [];
    for (const ref of found.values()) {
      const { inputs }: Pick<Manifest, 'inputs'> = await store.manifest(ref);
      next.push(...inputs.map(({ key }) => key).filter((key) => !kept.keys.has(key)));
    }
    for (const key of next) kept.keys.add(key);
  }
  return kept;
}

async function garbageKeys({ pool, store }: CollectDeps, kept: KeptKeys, { grace }: KeepPolicy) {
  const unused = (await storedKeys(pool)).filter((key) => !kept.keys.has(key));
  const recent = await recentKeys(pool, unused, grace);
  const keys = unused.filter((key) => !recent.has(key));
  const inUse = new Set([...kept.keys, ...recent]);
  return {
    keys,
    indexes: await indexKeys(pool, keys),
    rollouts: await findRolloutGarbage({ pool, store }, inUse, grace),
  };
}

async function collectionsThere({ milvus }: CollectDeps, indexes: readonly string[]): Promise<string[]> {
  const there: string[] = [];
  for (const collection_name of indexes.map(collectionName)) {
    const answer = await milvusCall('hasCollection', milvus.hasCollection({ collection_name }));
    if (answer.value) there.push(collection_name);
  }
  return there;
}

/**
 * Everything of one key, in one short transaction. Runs cannot come or be resumed while it lasts: one that came before
 * is seen here and keeps its key, one that comes after finds nothing and makes it anew.
 */
async function deleteKey({ pool, milvus }: CollectDeps, key: string, isIndex: boolean, kept: KeptKeys): Promise<void> {
  await inTransaction(pool, async (client) => {
    await client.query('lock table runs in share row exclusive mode');
    await kept.refresh(client);
    if (kept.keys.has(key)) return;
    await deleteRows(client, key);
    if (isIndex) await dropCollection(milvus, collectionName(key));
  });
}

async function dropCollection(milvus: MilvusClient, collection_name: string): Promise<void> {
  const { value } = await milvusCall('hasCollection', milvus.hasCollection({ collection_name }));
  if (value) await milvusCall('dropCollection', milvus.dropCollection({ collection_name }));
}
