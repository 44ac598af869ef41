import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MockActivityEnvironment } from '@temporalio/testing';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DirectoryBlobStore } from '../../activities/adapters/blob-store.ts';
import { batchColumns, writeParquet } from '../../activities/adapters/parquet.ts';
import type { LedgerStep, SavedState } from '../../activities/adapters/step-ledger.ts';
import {
  endProcessGroup,
  startTrainer,
  type TrainerClient,
  type TrainerLease,
} from '../../activities/adapters/trainer-process.ts';
import type { TrainerActivities } from '../../activities/index.ts';
import { createTrainStageActivities, type TrainStageDeps } from '../../activities/train-stage.ts';
import { python, repoRoot } from '../../services/home.ts';

/** The stage's activities with a real trainer and a real blob store; plan, ledger and lease stand in memory. */
const packageDir = join(repoRoot(), 'trainer');
const node = { plan: 'p', arm: 'base', id: 'stage', kind: 'rl' as const, key: 'k'.repeat(64) };
const base = { model: 'tiny', model_sha256: 'b'.repeat(64) };
let folder: string;
let lease: TrainerLease;
let client: TrainerClient;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-train-stage-'));
  const vocab = Object.fromEntries(Array.from({ length: 200 }, (_, id) => [`t${id}`, id]));
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify({ model: { vocab }, added_tokens: [] }));
  const make = join(packageDir, 'tests', 'tiny_policy.py');
  await promisify(execFile)(python(), [make, '--tokenizer', folder, '--out', join(folder, 'base')]);
  ({ lease, client } = await startTrainer({ python: python(), packageDir, logDir: folder, name: 'stage' }));
}, 120_000);

afterAll(async () => {
  client.disconnect();
  await endProcessGroup(lease.pid, lease.startTime);
  await rm(folder, { recursive: true, force: true });
});

async function batchOf(blobs: DirectoryBlobStore, seed: number): Promise<string> {
  const rows = Array.from({ length: 4 }, (_, row) => {
    const token_ids = Array.from({ length: 30 }, (_, at) => (at * 31 + row * 17 + seed * 7) % 200);
    const mask = token_ids.map((_, at) => Number(at > 10));
    const advantages = mask.map((sampled) => sampled * (row % 2 ? 1 : -1));
    const behavior_logprobs = mask.map((sampled) => -5 * sampled);
    return { sequence_id: `t${row}#0`, token_ids, mask, behavior_logprobs, advantages, temperature: 1, weight: 1 };
  });
  const path = join(folder, `${seed}.parquet`);
  await writeParquet(path, rows, batchColumns);
  return blobs.put(path);
}

/** A stage that trains all weights, on a parent with one adapter. */
async function stage(blobs: DirectoryBlobStore, parentAdapter: string) {
  const steps: LedgerStep[] = [];
  for (const step of [1, 2])
    steps.push({ step, batch_blob: await batchOf(blobs, step), sampled_with: '', status: 'planned', saved: null });
  const parameters = {
    policy: { model: 'tiny', sha256: base.model_sha256, dtype: 'float32' },
    adapter: null,
    optimizer: { learning_rate: 1e-3, minibatch: 4 },
    algorithm: {
      name: 'grpo',
      clip: { low: 0.2, high: 0.2, dual: null },
      kl: null,
      loss: 'token_mean',
      importance: null,
    },
    rollout: { max_staleness: 0 },
  };
  const published: Record<string, unknown>[] = [];
  const store = {
    openBlob: (sha256: string) => blobs.open(sha256),
    putBlob: (path: string) => blobs.put(path),
    readJson: async (sha256: string) => JSON.parse(await readFile(await blobs.open(sha256), 'utf8')),
    publish: async (artifact: Record<string, unknown>) => published.push(artifact),
  };
  const deps = {
    plans: {
      node: async () => ({ ...node, parameters, unkeyed: {}, seed: 3 }),
      inputs: async () => [
        { id: 'before', kind: 'sft', manifest: { body: { ...base, adapters: [parentAdapter] } }, digest: 'd' },
      ],
      lineage: async () => [],
    },
    store,
    ledger: {
      get: async (_key: string, step: number) => steps.find((row) => row.step === step) ?? null,
      lastSaved: async (_key: string, upTo = 99) => steps.findLast(({ step, saved }) => saved && step <= upTo) ?? null,
      between: async (_key: string, from: number, to: number) => steps.filter(({ step }) => step > from && step <= to),
      done: async (_key: string, step: number, saved: SavedState | null) =>
        Object.assign(steps[step - 1] as LedgerStep, { status: 'done', saved }),
      savedSteps: async () => steps.flatMap(({ step, saved }) => (saved ? [step] : [])),
      letGo: async () => [],
    },
    spend: { mayGoOn: async () => ({ kind: 'admitted' }) },
    progress: {
      report: async () => undefined,
      record: async () => undefined,
      metrics: async () => [],
      curves: async () => new Map(),
    },
    merged: { dtype: 'float32', path: ({ digest }: { digest: string }) => join(folder, 'merged', digest) },
    host: { client: async () => client, assertHeld: async () => undefined, end: async () => undefined },
    work: join(folder, 'work'),
    modelDir: () => join(folder, 'base'),
    trainer: { threads: 1, micro_batch_tokens: 64 },
  } as unknown as TrainStageDeps;
  return { activities: createTrainStageActivities(deps), published, steps };
}

type Trained = { checkpoint: { digest: string } };
const run = <M extends keyof TrainerActivities>(activities: TrainerActivities, name: M, input: object) =>
  new MockActivityEnvironment().run(activities[name] as (given: object) => Promise<unknown>, {
    node,
    epoch: 1,
    ...input,
  });

test('a stage of all weights is trained, saved, opened again from its save and published in place of its base', async () => {
  const blobs = new DirectoryBlobStore(join(folder, 'blobs'));
  await client.call('open', {
    stage_key: 'parent',
    base_dir: join(folder, 'base'),
    adapter: { lora_rank: 2 },
    optimizer: { learning_rate: 0.01 },
    dtype: 'float32',
    threads: 1,
    deterministic: true,
    seed: 1,
  });
  await client.call('save', { dir: join(folder, 'parent') });
  const parentAdapter = await blobs.put(join(folder, 'parent', 'adapter.safetensors'));
  const { activities, published, steps } = await stage(blobs, parentAdapter);

  const [one, two] = steps as [LedgerStep, LedgerStep];
  one.sampled_with = ((await run(activities, 'openTrainer', { steps: 2 })) as Trained).checkpoint.digest;
  const first = (await run(activities, 'trainStep', { step: 1, steps: 2 })) as Trained;
  expect(first).toMatchObject({ checkpoint: { ...base, weights: steps[0]?.saved?.adapter, adapters: [] } });
  await client.call('close', {}); // as a process that has never heard of the stage
  two.sampled_with = one.sampled_with;
  await expect(run(activities, 'trainStep', { step: 2, steps: 2 })).rejects.toThrow(
    /STALENESS: its batch was sampled with [0-9a-f]{12}, which no step within `max_staleness: 0` gave/,
  );
  two.sampled_with = first.checkpoint.digest;
  const second = (await run(activities, 'trainStep', { step: 2, steps: 2 })) as Trained;
  expect(existsSync(join(folder, 'merged', second.checkpoint.digest, 'model.safetensors'))).toBe(true);

  await run(activities, 'publishStage', { step: 2, reason: 'steps' });
  const weights = steps[1]?.saved?.adapter;
  expect(published).toMatchObject([{ body: { ...base, weights, adapters: [], step: 2 } }]);
  expect(Object.keys(published[0]?.['files'] as object)).toEqual([
    'model.safetensors',
    'optimizer.safetensors',
    'trainer_state.json',
  ]);
}, 240_000);
