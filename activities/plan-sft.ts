import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DuckDBInstance, listValue } from '@duckdb/node-api';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { StepLedger } from './adapters/step-ledger.ts';
import type { NodeRef, StageActivities } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { parentCheckpoint } from './resolve-checkpoint.ts';
import { openTrajectories } from './write-trajectories.ts';

export interface PlanSftDeps {
  plans: PlanReader;
  store: ArtifactStore;
  ledger: StepLedger;
  progress: NodeProgress;
  /** Scratch space. */
  work: string;
}

/** How often a running statement is asked how far it is. */
const WATCH_MS = 1_000;

/**
 * One row of a training batch: cross-entropy needs ids and mask only. Rows of a step are ordered by sequence_id,
 * so the same trajectories always give the same file.
 */
const BATCHES = `
  copy (
    select * exclude (step), step from (
      select trajectory_id || '#' || epoch as sequence_id, token_ids, mask::tinyint[] as mask,
             []::float[] as behavior_logprobs, []::float[] as advantages, 1.0::float as temperature, 1.0::float as weight,
             lpad((1 + (row_number() over (order by epoch, place) - 1) // $batch)::varchar, 8, '0') as step
      from (
        select *, sha256(trajectory_id || ':' || $seed || ':' || epoch) as place
        from read_parquet($source), unnest(range($epochs::bigint)) as epochs (epoch)
      )
    ) order by step, sequence_id
  ) to '$out' (format parquet, compression zstd, partition_by (step))`;

export const createPlanSftActivities = ({
  plans,
  store,
  ledger,
  progress,
  work,
}: PlanSftDeps): Pick<StageActivities, 'planSft'> => ({
  /** Shuffle, cut into batches in one streaming pass, and write every batch to the ledger before the first step. */
  planSft: (ref: NodeRef) =>
    withPulse(async (moved) => {
      const node = await plans.node(ref);
      const { batch, epochs } = nodeOf('sft', node).parameters.optimizer;
      const source = await openTrajectories(store, await plans.input(ref, 'trajectories'));
      const checkpoint = await parentCheckpoint(plans, ref);

      await mkdir(work, { recursive: true });
      const folder = await mkdtemp(join(work, 'sft-'));
      try {
        const files = await writeBatches({
          source,
          out: join(folder, 'batches'),
          seed: node.seed ?? 0,
          batch,
          epochs,
          moved,
        });
        for (const [index, file] of files.entries()) {
          await ledger.plan(ref.key, index + 1, await store.putBlob(file), checkpoint.digest);
          moved();
        }
        await progress.report(ref.key, 0, files.length, `${files.length} batches planned`);
        return { steps: files.length };
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    }),
});

/** Batch files in step order. */
async function writeBatches(options: {
  source: readonly string[];
  out: string;
  seed: number;
  batch: number;
  epochs: number;
  moved(): void;
}): Promise<string[]> {
  const { source, out, seed, batch, epochs, moved } = options;
  const database = await DuckDBInstance.create(':memory:', { threads: '1' });
  const connection = await database.connect();
  let processed = 0n;
  const watching = setInterval(() => {
    const { rows_processed } = connection.progress;
    try {
      if (rows_processed !== processed) moved();
    } catch {
      connection.interrupt(); // cancelled: the statement fails, and so do we
    }
    processed = rows_processed;
  }, WATCH_MS);
  try {
    await connection.run(BATCHES.replace('$out', out.replaceAll("'", "''")), {
      source: listValue(source),
      batch,
      seed: String(seed),
      epochs,
    });
  } finally {
    clearInterval(watching);
    connection.closeSync();
    database.closeSync();
  }
  const steps = (await readdir(out)).sort();
  const files = await Promise.all(
    steps.map(async (step) => (await readdir(join(out, step))).sort().map((file) => join(out, step, file))),
  );
  return files.flat();
}
