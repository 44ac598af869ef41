/** The tasks an rl stage draws from: those its newest measurement of pass rates kept, or the whole split. */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import type { PoolTask } from '../environments/deep-research/draw-tasks.ts';
import type { ProfileBody } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import type { NodeOf } from '../schemas/node-parameters.ts';
import type { Task } from '../schemas/task.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { PoolLedger } from './adapters/pool-ledger.ts';
import type { NodeRef } from './index.ts';
import type { PassRate } from './measure-pass-rates.ts';
import type { NodeInput, PlanReader } from './plan-reader.ts';
import { parentCheckpoint } from './resolve-checkpoint.ts';

export interface PoolSources {
  plans: PlanReader;
  store: ArtifactStore;
  pools: PoolLedger;
}

export interface TrainingPool {
  tasks: PoolTask[];
  /** The step after which it was chosen: its first epoch begins there. */
  since: number;
}

/** Throws PROFILE_CHECKPOINT when the stage's profile measured other weights than those the stage starts from. */
export async function trainingPool(
  { plans, store, pools }: PoolSources,
  ref: NodeRef,
  node: NodeOf<'rl'>,
  all: readonly Task[],
  step: number,
): Promise<TrainingPool> {
  const profile = (await plans.inputs(ref)).find(({ kind }) => kind === 'profile');
  if (!profile) {
    const { split } = node.parameters.tasks;
    return { tasks: all.filter((task) => task.split === split).map((task) => ({ task, weight: 1 })), since: 0 };
  }
  // What step 8 draws from was chosen after step 7 or before.
  const chosen = await pools.newest(ref.key, step - 1);
  if (chosen) return { tasks: await keptTasks(await store.openBlob(chosen.blob), all), since: chosen.step };
  await assertMeasured(plans, ref, profile);
  return { tasks: await keptTasks(await store.openFile(profile.manifest, 'pass_rates.jsonl'), all), since: 0 };
}

/** Pass rates of other weights say nothing about which tasks these can learn from. */
async function assertMeasured(plans: PlanReader, ref: NodeRef, { id, manifest }: NodeInput): Promise<void> {
  const { checkpoint } = manifest.body as unknown as ProfileBody;
  const start = await parentCheckpoint(plans, ref);
  if (checkpoint === start.digest) return;
  const found = checkpoint ? `measured the checkpoint ${checkpoint.slice(0, 12)}` : 'does not say what it measured';
  throw new ExpError(
    'PROFILE_CHECKPOINT',
    ref.id,
    `the profile ${id} ${found}, and this stage starts from ${start.digest.slice(0, 12)}; measure again with \`exp rerun RUN --from ${id}\``,
  );
}

async function keptTasks(path: string, all: readonly Task[]): Promise<PoolTask[]> {
  const weights = new Map<string, number>();
  for await (const line of createInterface({ input: createReadStream(path) })) {
    if (line === '') continue;
    const { task_id, kept, weight } = JSON.parse(line) as PassRate;
    if (kept) weights.set(task_id, weight);
  }
  return all.flatMap((task) => {
    const weight = weights.get(task.task_id);
    return weight === undefined ? [] : [{ task, weight }];
  });
}
