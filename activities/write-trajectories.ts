import { join } from 'node:path';
import type { Manifest } from '../schemas/artifact.ts';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { trajectoryColumns, writeParquet } from './adapters/parquet.ts';

/**
 * About 100 MB of lines: a Parquet writer holds a file of this size in memory, and writes it within the time between
 * two heartbeats.
 */
const SHARD_TOKENS = 8_000_000;

/** Write a stream of trajectories as `trajectories.parquet`, and as many more files as it takes. Returns name → path. */
export async function writeTrajectories(
  folder: string,
  rows: AsyncIterable<Trajectory>,
  shardTokens = SHARD_TOKENS,
): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  const iterator = rows[Symbol.asyncIterator]();
  let next = await iterator.next();
  async function* oneShard(): AsyncGenerator<Trajectory> {
    for (let tokens = 0; !next.done && tokens < shardTokens; next = await iterator.next()) {
      tokens += next.value.token_ids.length;
      yield next.value;
    }
  }
  try {
    for (let shard = 1; shard === 1 || !next.done; shard += 1) {
      const name = shard === 1 ? 'trajectories.parquet' : `trajectories-${shard}.parquet`;
      files[name] = join(folder, name);
      await writeParquet(join(folder, name), oneShard(), trajectoryColumns);
    }
  } finally {
    await iterator.return?.();
  }
  return files;
}

/** Blobs of the trajectories of an artifact; there is more than one when they are many. */
export function trajectoryBlobs({ files }: Pick<Manifest, 'files'>): string[] {
  return files.filter(({ name }) => /^trajectories(-\d+)?\.parquet$/.test(name)).map(({ sha256 }) => sha256);
}

/** Local paths of the same. */
export function openTrajectories(store: ArtifactStore, manifest: Manifest): Promise<string[]> {
  return Promise.all(trajectoryBlobs(manifest).map((blob) => store.openBlob(blob)));
}
