/** From a file of somebody's trajectories to optimizer steps: plan, import, batches in the ledger, the real trainer. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MockActivityEnvironment } from '@temporalio/testing';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { openBlobStore } from '../../activities/adapters/blob-store.ts';
import { readParquet } from '../../activities/adapters/parquet.ts';
import { StepLedger } from '../../activities/adapters/step-ledger.ts';
import { endProcessGroup, startTrainer } from '../../activities/adapters/trainer-process.ts';
import { createDemonstrationActivities } from '../../activities/demonstrations.ts';
import type { NodeRef } from '../../activities/index.ts';
import { NodeProgress } from '../../activities/node-progress.ts';
import { PlanReader } from '../../activities/plan-reader.ts';
import { createPlanSftActivities } from '../../activities/plan-sft.ts';
import { Tokenizers } from '../../activities/worlds.ts';
import type { ArtifactRef } from '../../schemas/artifact.ts';
import type { Plan, PlanNode } from '../../schemas/plan.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';
import { modelsDir, python, repoRoot } from '../../services/home.ts';
import { planFile } from '../unit/plan-fixture.ts';
import { startPostgres, type TestService } from './toy-services.ts';

const MODEL = 'smollm2-135m-instruct';
let postgres: TestService;
let pool: pg.Pool;
let work: string;
let store: ArtifactStore;
let plans: PlanReader;
let progress: NodeProgress;
let plan: Plan;
let planBlob: string;

beforeAll(async () => {
  postgres = await startPostgres();
  pool = new pg.Pool({ connectionString: postgres.address, max: 4 });
  work = await mkdtemp(join(tmpdir(), 'exp-imported-'));
  store = new ArtifactStore(
    pool,
    await openBlobStore({ kind: 'dir', path: join(work, 'artifacts') }, join(work, 'cache')),
  );
  plans = new PlanReader(store);
  progress = new NodeProgress(pool);
  const loaded = await planFile(join(repoRoot(), 'tests/fixtures/specs/imported.yaml'));
  plan = loaded.plan as Plan;
  planBlob = await store.putJson(plan);
}, 60_000);

afterAll(async () => {
  await pool?.end();
  await postgres?.stop();
  if (work) await rm(work, { recursive: true, force: true });
});

const arm = () => plan.arms[0] as Plan['arms'][number];
const refOf = (id: string): NodeRef => {
  const { kind, key } = arm().nodes.find((node) => node.id === id) as PlanNode;
  return { plan: planBlob, arm: arm().name, id, kind, key };
};

test('a file of trajectories is imported, cleaned and counted, and the trainer takes steps on what is left', async () => {
  const environment = new MockActivityEnvironment();
  const { demonstrations } = createDemonstrationActivities({
    plans,
    store,
    worlds: { open: () => Promise.reject(new Error('an import opens no world')) },
    tokenizers: new Tokenizers((model) => join(modelsDir(), model)),
    progress: progress.report,
    work,
  });
  await progress.started(refOf('cold_start.trajectories'));
  const artifact = (await environment.run(demonstrations, refOf('cold_start.trajectories'))) as ArtifactRef;

  // Of eight one is wrong; of the others four have a page read and so three turns, which count twice.
  const said = '7 of 8 records kept as 11 instances; dropped: wrong answer 1; ';
  const manifest = await store.manifest(artifact);
  expect(manifest.body).toMatchObject({ trajectories: 7, instances: 11, dropped: { wrong_answer: 1 } });
  expect(manifest.metrics).toContainEqual(expect.objectContaining({ name: 'trajectories/instances', value: 11 }));
  const report = JSON.parse(await readFile(await store.openFile(manifest, 'report.json'), 'utf8'));
  expect(report).toMatchObject({
    format: 'redsearcher',
    licence: 'CC0-1.0',
    provenance: 'made for the tests',
    removed_turns: { other_tools: { PythonInterpreter: 1 }, repeated_calls: 1 },
  });
  const { rows } = await pool.query('select done::int, total::int, detail from node_progress where key = $1', [
    artifact.key,
  ]);
  expect(rows).toEqual([{ done: 8, total: 8, detail: expect.stringContaining(said) }]);

  const instances: Trajectory[] = [];
  for await (const row of readParquet<Trajectory>(await store.openFile(manifest, 'trajectories.parquet')))
    instances.push(row);
  expect(instances).toHaveLength(11);

  const ledger = new StepLedger(pool);
  const { planSft } = createPlanSftActivities({ plans, store, ledger, progress, work });
  expect(await environment.run(planSft, refOf('cold_start'))).toEqual({ steps: 3 });
  const batches = await ledger.between(refOf('cold_start').key, 0, 3);
  const trained = [];
  for (const { batch_blob } of batches)
    for await (const { token_ids, mask } of readParquet<{ token_ids: number[]; mask: number[] }>(
      await store.openBlob(batch_blob),
    ))
      trained.push(JSON.stringify([token_ids, mask]));
  expect(trained.sort()).toEqual(instances.map(({ token_ids, mask }) => JSON.stringify([token_ids, mask])).sort());

  const steps = await stepsOn(await Promise.all(batches.map(({ batch_blob }) => store.openBlob(batch_blob))));
  const ones = instances.reduce((sum, { mask }) => sum + mask.filter((bit) => bit === 1).length, 0);
  expect(steps.map(({ sequences }) => sequences)).toEqual([4, 4, 3]);
  expect(steps.reduce((sum, { action_tokens = 0 }) => sum + action_tokens, 0)).toBe(ones);
  for (const { loss } of steps) expect(loss).toBeGreaterThan(0);
}, 120_000);

/** Steps of the real trainer with a tiny random policy over the given batches. */
async function stepsOn(batches: readonly string[]): Promise<Record<string, number>[]> {
  const packageDir = join(repoRoot(), 'trainer');
  const base = join(work, 'tiny');
  await promisify(execFile)(python(), [
    join(packageDir, 'tests', 'tiny_policy.py'),
    '--tokenizer',
    join(modelsDir(), MODEL),
    '--out',
    base,
  ]);
  const { lease, client } = await startTrainer({
    python: python(),
    packageDir,
    logDir: join(work, 'logs'),
    name: 'import',
  });
  try {
    await client.call('open', {
      stage_key: 'stage',
      base_dir: base,
      adapter: { lora_rank: 4 },
      optimizer: { learning_rate: 0.01 },
      dtype: 'float32',
      threads: 1,
      deterministic: true,
      seed: 1,
    });
    const steps = [];
    for (const [index, batch] of batches.entries()) {
      const { metrics } = await client.call('step', {
        step_id: `stage/${index + 1}`,
        step: index + 1,
        batch,
        loss: { kind: 'cross_entropy', aggregation: 'token_mean' },
        micro_batch_tokens: 2048,
      });
      steps.push(metrics);
    }
    return steps;
  } finally {
    client.disconnect();
    await endProcessGroup(lease.pid, lease.startTime);
  }
}
