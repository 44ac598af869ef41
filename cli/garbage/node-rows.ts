/** Everything PostgreSQL holds under a node's key. */
import type { Pool, PoolClient } from 'pg';

/** Tables with the column that holds the key, in the order in which they are emptied. */
const TABLES = [
  ['artifacts', 'key'],
  ['retired_artifacts', 'key'],
  ['node_progress', 'key'],
  ['node_metrics', 'key'],
  ['steps', 'stage_key'],
  ['stage_pools', 'stage_key'],
  ['judge_replies', 'node_key'],
  ['index_shards', 'index_key'],
  ['page_bands', 'corpus_key'],
  ['corpus_pages', 'corpus_key'],
] as const;

/** Each key once, found along the primary key: `corpus_pages` has a row for every page. */
const DISTINCT_CORPORA = `
  with recursive found as (
    (select corpus_key as key from corpus_pages order by corpus_key limit 1)
    union all
    select (select corpus_key from corpus_pages where corpus_key > found.key order by corpus_key limit 1)
    from found where found.key is not null
  ) select key from found where key is not null`;

/** Every key that anything is stored under. */
export async function storedKeys(db: Pool | PoolClient): Promise<string[]> {
  const selects = TABLES.filter(([table]) => table !== 'corpus_pages').map(
    ([table, column]) => `select ${column} as key from ${table}`,
  );
  const { rows } = await db.query<{ key: string }>(
    `select key from (${[...selects, `select key from (${DISTINCT_CORPORA}) as corpora`].join(' union ')}) as keys order by key`,
  );
  return rows.map(({ key }) => key);
}

/** Keys among these that something was written under since: whoever did may be at work outside any run. */
export async function recentKeys(db: Pool | PoolClient, keys: readonly string[], since: Date): Promise<Set<string>> {
  const { rows } = await db.query<{ key: string }>(
    `select key from artifacts where key = any($1) and created_at > $2
     union select key from node_progress where key = any($1) and updated_at > $2
     union select index_key from index_shards where index_key = any($1) and sealed_at > $2`,
    [keys, since],
  );
  return new Set(rows.map(({ key }) => key));
}

/** Keys among these that an index was built under. */
export async function indexKeys(db: Pool | PoolClient, keys: readonly string[]): Promise<string[]> {
  const { rows } = await db.query<{ key: string }>(
    `select index_key as key from index_shards where index_key = any($1)
     union select key from artifacts where key = any($1) and kind = 'index'
     union select key from retired_artifacts where key = any($1) and kind = 'index' order by key`,
    [keys],
  );
  return rows.map(({ key }) => key);
}

export interface Amount {
  count: number;
  /** Null where nobody can say. */
  bytes: number | null;
}

/** Rows under these keys, by table. */
export async function measureRows(db: Pool | PoolClient, keys: readonly string[]): Promise<Map<string, Amount>> {
  const amounts = new Map<string, Amount>();
  for (const [table, column] of TABLES) {
    const { rows } = await db.query<{ count: string; bytes: string }>(
      `select count(*) as count, coalesce(sum(pg_column_size(t.*)), 0) as bytes from ${table} t where ${column} = any($1)`,
      [keys],
    );
    amounts.set(table, { count: Number(rows[0]?.count), bytes: Number(rows[0]?.bytes) });
  }
  return amounts;
}

export async function deleteRows(client: PoolClient, key: string): Promise<void> {
  for (const [table, column] of TABLES) await client.query(`delete from ${table} where ${column} = $1`, [key]);
}
