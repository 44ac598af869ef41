/** Journals and shards of rollouts. They carry no key, but every trajectory's id begins with that of its node. */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Pool } from 'pg';
import type { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { Amount } from './node-rows.ts';

/** `<12 hex of the node's key>/<step>/<task>/<sample>`. */
const PREFIX = 12;
const OWNER = /^([0-9a-f]{12})\//;

export interface RolloutGarbage {
  /** First part of the ids of journaled trajectories. */
  owners: string[];
  turns: Amount;
  /** Requests whose shards go. */
  requests: string[];
  shards: Amount;
}

/** What belongs to no kept key, and was not written after `since`. */
export async function findRolloutGarbage(
  { pool, store }: { pool: Pool; store: ArtifactStore },
  kept: ReadonlySet<string>,
  since: Date,
): Promise<RolloutGarbage> {
  const keptOwners = new Set([...kept].map((key) => key.slice(0, PREFIX)));
  const journaled = await pool.query<{ owner: string; count: string; bytes: string }>(
    `select split_part(trajectory_id, '/', 1) as owner, count(*) as count, sum(pg_column_size(t.*)) as bytes
     from turns t group by 1 having max(created_at) < $1 order by 1`,
    [since],
  );
  const turns = journaled.rows.filter(({ owner }) => OWNER.test(`${owner}/`) && !keptOwners.has(owner));
  const sealed = await pool.query<{ request: string; count: string; bytes: string }>(
    `select request, count(*) as count, sum(pg_column_size(t.*)) as bytes
     from rollout_shards t group by 1 having max(sealed_at) < $1 order by 1`,
    [since],
  );
  const shards = [];
  for (const row of sealed.rows) {
    const owner = await ownerOf(store, row.request);
    if (owner === null || !keptOwners.has(owner)) shards.push(row);
  }
  return {
    owners: turns.map(({ owner }) => owner),
    turns: sum(turns),
    requests: shards.map(({ request }) => request),
    shards: sum(shards),
  };
}

const sum = (rows: readonly { count: string; bytes: string }[]): Amount => ({
  count: rows.reduce((total, { count }) => total + Number(count), 0),
  bytes: rows.reduce((total, { bytes }) => total + Number(bytes), 0),
});

/** The first trajectory of a request says whose it is; null when the request is gone, and so of use to nobody. */
async function ownerOf(store: ArtifactStore, request: string): Promise<string | null> {
  const path = await store.openBlob(request).catch((error: unknown) => {
    if (error instanceof ExpError && error.code === 'ARTIFACT_MISSING') return null;
    throw error;
  });
  if (path === null) return null;
  const input = createReadStream(path);
  try {
    for await (const line of createInterface({ input })) {
      const { trajectory_id = '' } = JSON.parse(line) as { trajectory_id?: string };
      const [, owner] = trajectory_id.match(OWNER) ?? [];
      if (owner !== undefined) return owner;
    }
    return null;
  } finally {
    input.destroy();
  }
}

export async function deleteRolloutGarbage(pool: Pool, { owners, requests }: RolloutGarbage): Promise<void> {
  await pool.query(`delete from turns where split_part(trajectory_id, '/', 1) = any($1)`, [owners]);
  await pool.query('delete from rollout_shards where request = any($1)', [requests]);
}
