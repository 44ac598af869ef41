/** Where the trajectories of a run lie: sealed shards of the nodes that sampled, and those that are imitated. */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { trajectoryBlobs } from '../../activities/write-trajectories.ts';
import type { Stack } from '../open-stack.ts';
import type { NodeFacts } from './read-nodes.ts';

export interface TrajectoryFile {
  node: NodeFacts;
  blob: string;
}

const SAMPLING = new Set(['profile', 'rl', 'benchmark']);

/** In plan order, and within a node in the order they were sealed. */
export async function findTrajectoryFiles(stack: Stack, nodes: readonly NodeFacts[]): Promise<TrajectoryFile[]> {
  const sampling = nodes.filter(({ node }) => SAMPLING.has(node.kind));
  const shards = await shardsOf(stack, sampling);
  return nodes.flatMap((one): TrajectoryFile[] => {
    if (one.node.kind === 'trajectories') {
      return one.manifest === null ? [] : trajectoryBlobs(one.manifest).map((blob) => ({ node: one, blob }));
    }
    return (shards.get(one.node.key) ?? []).map((blob) => ({ node: one, blob }));
  });
}

interface ShardRow {
  request: string;
  node_key: string | null;
  blob: string;
}

/** Of a batch that was sampled from two checkpoints (an artifact made anew), the later one counts. */
async function shardsOf({ pool, store }: Stack, nodes: readonly NodeFacts[]): Promise<Map<string, string[]>> {
  const { rows } = await pool.query<ShardRow>(
    `select request, node_key, blob from (
       select distinct on (request, batch) request, batch, node_key, blob, sealed_at from rollout_shards
       where node_key = any($1) or node_key is null order by request, batch, sealed_at desc
     ) as shards order by sealed_at, request, batch`,
    [nodes.map(({ node }) => node.key)],
  );
  const keys = new Map(nodes.map(({ node }) => [node.key.slice(0, 12), node.key]));
  const prefixes = new Map<string, string | null>();
  const shards = new Map<string, string[]>();
  for (const { request, node_key, blob } of rows) {
    if (node_key === null && !prefixes.has(request)) prefixes.set(request, await keyPrefix(store, request));
    const key = node_key ?? keys.get(prefixes.get(request) ?? '');
    if (key !== undefined) shards.set(key, [...(shards.get(key) ?? []), blob]);
  }
  return shards;
}

/** Shards that were sealed before they named their node: a request's first trajectory is named after it. */
async function keyPrefix(store: Stack['store'], request: string): Promise<string | null> {
  const path = await store.openBlob(request).catch(() => null);
  if (path === null) return null;
  const stream = createReadStream(path);
  try {
    let row = 0;
    for await (const line of createInterface({ input: stream })) {
      row += 1;
      if (row === 2) return (JSON.parse(line) as { trajectory_id: string }).trajectory_id.split('/')[0] ?? null;
    }
    return null;
  } finally {
    stream.destroy();
  }
}
