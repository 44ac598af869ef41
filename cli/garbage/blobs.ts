/** Blobs that nothing names any more. */
import { readFile } from 'node:fs/promises';
import type { Pool } from 'pg';
import type { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { cursorRows } from '../../environments/world/pages.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { Amount } from './node-rows.ts';

const HASH = /\b[0-9a-f]{64}\b/g;

/** What will be gone; empty once it is. */
export interface Going {
  runs: readonly string[];
  keys: readonly string[];
  requests: readonly string[];
}

/** Every hash that a row that stays, or a manifest of one, mentions. Some are keys or digests: they name no blob. */
export async function namedBlobs(pool: Pool, store: ArtifactStore, going: Going): Promise<Set<string>> {
  const named = new Set<string>();
  const add = (text: string): void => {
    for (const [hash] of text.matchAll(HASH)) named.add(hash);
  };
  const rows: [string, readonly string[]][] = [
    ['select plan_blob as text from runs where id <> all($1)', going.runs],
    [
      `select concat_ws(' ', batch_blob, adapter_blob, result::text) as text from steps where stage_key <> all($1)`,
      going.keys,
    ],
    ['select blob as text from stage_pools where stage_key <> all($1)', going.keys],
    [`select concat_ws(' ', request, blob) as text from rollout_shards where request <> all($1)`, going.requests],
    ['select payload::text as text from outbox where sent_at is null and $1::text[] is not null', []],
    ['select state::text as text from leases where $1::text[] is not null', []],
  ];
  for (const [sql, values] of rows)
    for await (const { text } of cursorRows<{ text: string }>(pool, sql, [values])) add(text);
  for (const table of ['artifacts', 'retired_artifacts']) {
    const sql = `select manifest_blob from ${table} where key <> all($1)`;
    for await (const { manifest_blob } of cursorRows<{ manifest_blob: string }>(pool, sql, [going.keys])) {
      named.add(manifest_blob);
      add(await textOf(store, manifest_blob));
    }
  }
  return named;
}

/** A manifest that is gone names nothing; `exp artifacts verify` tells of it. */
async function textOf(store: ArtifactStore, sha256: string): Promise<string> {
  try {
    return await readFile(await store.openBlob(sha256), 'utf8');
  } catch (error) {
    if (error instanceof ExpError && error.code === 'ARTIFACT_MISSING') return '';
    throw error;
  }
}

/**
 * A blob that an active run has stored and not yet named anywhere is no older than the run, or than the node that it
 * joined: nothing younger than the oldest of them is touched.
 */
export async function oldestInUse(pool: Pool, grace: Date): Promise<Date> {
  const { rows } = await pool.query<{ oldest: Date | null }>(
    `select min(begun) as oldest from (
       select created_at as begun from runs where status = 'running'
       union all select started_at from node_progress where status = 'running'
     ) as active`,
  );
  const oldest = rows[0]?.oldest ?? grace;
  return oldest < grace ? oldest : grace;
}

/** Null where the store cannot be collected. */
export async function sweepBlobs(
  store: ArtifactStore,
  named: ReadonlySet<string>,
  { before, apply }: { before: Date; apply: boolean },
): Promise<Amount | null> {
  const collector = store.blobCollector;
  if (collector === null) return null;
  const swept = { count: 0, bytes: 0 };
  for await (const { sha256, bytes, stored_at } of collector.list()) {
    if (named.has(sha256) || stored_at >= before) continue;
    if (apply && !(await collector.remove(sha256, before))) continue;
    swept.count += 1;
    swept.bytes += bytes;
  }
  return swept;
}
