import { createHash } from 'node:crypto';
import { appendFile, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { readLines } from '../environments/world/sources/lines.ts';
import { ExpError } from '../schemas/errors.ts';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { batchColumns, readParquet, writeParquet } from './adapters/parquet.ts';
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

export const createPlanSftActivities = ({
  plans,
  store,
  ledger,
  progress,
  work,
}: PlanSftDeps): Pick<StageActivities, 'planSft'> => ({
  /**
   * Shuffle, cut into batches, and write every batch to the ledger before the first step. Trajectories are dealt out to
   * files of their steps in one pass: the memory it takes is that of one batch, however many there are.
   */
  planSft: (ref: NodeRef) =>
    withPulse(async (moved) => {
      const node = await plans.node(ref);
      const { batch, epochs } = nodeOf('sft', node).parameters.optimizer;
      const files = await openTrajectories(store, await plans.input(ref, 'trajectories'));
      const checkpoint = await parentCheckpoint(plans, ref);
      const order = await shuffled(files, node.seed ?? 0, epochs);
      const steps = Math.ceil(order.length / batch);
      const stepOf = new Map(order.map((sequence, index) => [sequence, 1 + Math.floor(index / batch)]));

      await mkdir(work, { recursive: true });
      const folder = await mkdtemp(join(work, 'sft-'));
      try {
        const rowsOf = (step: number) => join(folder, `${step}.ndjson`);
        for (const file of files) {
          for await (const row of readParquet<Trained>(file, TRAINED)) {
            moved();
            for (const sequence of sequencesOf(row.trajectory_id, epochs))
              await appendFile(rowsOf(stepOf.get(sequence) as number), `${JSON.stringify(batchRow(sequence, row))}\n`);
          }
        }
        for (let step = 1; step <= steps; step += 1) {
          const target = join(folder, `${step}.parquet`);
          await writeParquet(target, await sortedRows(rowsOf(step)), batchColumns);
          await ledger.plan(ref.key, step, await store.putBlob(target), checkpoint.digest);
          await Promise.all([rowsOf(step), target].map((used) => rm(used)));
          moved();
        }
        await progress.report(ref.key, 0, steps, `${steps} batches planned`);
        return { steps };
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    }),
});

type Trained = Pick<Trajectory, 'trajectory_id' | 'token_ids' | 'mask'>;
const TRAINED = ['trajectory_id', 'token_ids', 'mask'] as const;

/** Once an epoch; `<trajectory>#<epoch>`. */
function sequencesOf(trajectory: string, epochs: number): string[] {
  return Array.from({ length: epochs }, (_, epoch) => `${trajectory}#${epoch}`);
}

/** Every sequence, epoch after epoch, each epoch in an order of its own that the seed decides. */
async function shuffled(files: readonly string[], seed: number, epochs: number): Promise<string[]> {
  const ids: string[] = [];
  for (const file of files)
    for await (const { trajectory_id } of readParquet<Trained>(file, ['trajectory_id'])) ids.push(trajectory_id);
  const places = Array.from({ length: epochs }, (_, epoch) =>
    ids
      .map((id) => ({ id, place: createHash('sha256').update(`${id}:${seed}:${epoch}`).digest('hex') }))
      .sort((a, b) => (a.place < b.place ? -1 : 1))
      .map(({ id }) => `${id}#${epoch}`),
  );
  return places.flat();
}

/** Cross-entropy needs ids and mask only. */
function batchRow(sequence_id: string, { token_ids, mask }: Trained): object {
  return { sequence_id, token_ids, mask, behavior_logprobs: [], advantages: [], temperature: 1, weight: 1 };
}

/** In the order of sequence_id, so that the same trajectories always give the same file. */
async function sortedRows(path: string): Promise<{ sequence_id: string }[]> {
  const rows: { sequence_id: string }[] = [];
  for await (const line of readLines(path)) {
    if ('error' in line) throw new ExpError('BATCH', `${path}:${line.number}`, line.error);
    rows.push(JSON.parse(line.text) as { sequence_id: string });
  }
  return rows.sort((a, b) => (a.sequence_id < b.sequence_id ? -1 : 1));
}
