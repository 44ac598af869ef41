/**
 * Whether what trains is what was sampled, on the real engine and the real trainer:
 *
 *     npm run bench -- fidelity [--count N] [--adapter FILE] [setting …]
 *
 * SmolLM2, with an adapter that calls tools (one of a cold start of it; taught here when there is none), is sampled by the rollout activity (vLLM, journal, shard) with each way of context
 * management in turn; planRlStep writes the batch; the trainer reads it and scores it. Compared are the ids of the
 * batch with those the engine was sent and answered, and the logprobs of the engine with those of the trainer at the
 * trajectory's temperature. N trajectories of each setting: t1, t07, t07p95, or those named. Two JSON lines each.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { ArtifactStore } from '../../../activities/adapters/artifact-store.ts';
import { openBlobStore } from '../../../activities/adapters/blob-store.ts';
import { EnginePool } from '../../../activities/adapters/engine.ts';
import { MergedWeights } from '../../../activities/adapters/merged-weights.ts';
import { endProcessGroup, startTrainer } from '../../../activities/adapters/trainer-process.ts';
import { checkpointOf } from '../../../activities/resolve-checkpoint.ts';
import { loadTokenizer } from '../../../environments/deep-research/prompt.ts';
import { loadProfile } from '../../../plan/profile.ts';
import { python, repoRoot } from '../../../services/home.ts';
import { modelPath } from '../../../services/programs.ts';
import { startStack } from '../../../tests/services.ts';
import { compareIds, compareLogprobs } from './compare-tokens.ts';
import { learnToCall, openParams } from './learn-to-call.ts';
import { readPackages, tasksOf, worldOf } from './package-world.ts';
import { RecordedEngines } from './recorded-engines.ts';
import { sampleBatch } from './sample-batch.ts';

const MODEL = 'smollm2-135m-instruct';
const SETTINGS: Record<string, { temperature: number; top_p: number }> = {
  t1: { temperature: 1, top_p: 1 },
  t07: { temperature: 0.7, top_p: 1 },
  t07p95: { temperature: 0.7, top_p: 0.95 },
};
const DEMONSTRATIONS = 48;
const OBSERVATION_TOKENS = 96;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { count: { type: 'string', default: '72' }, adapter: { type: 'string' } },
});
const settings = positionals.length > 0 ? positionals : Object.keys(SETTINGS);

const folder = await mkdtemp(join(tmpdir(), 'exp-bench-fidelity-'));
const profile = loadProfile('local', join(repoRoot(), 'profiles'));
const packageDir = join(repoRoot(), 'trainer');
const dir = modelPath(profile, MODEL);
const base = { model: MODEL, model_sha256: '0'.repeat(64), dir };
const dtype = profile.serving_dtype;
const threads = availableParallelism();
const tokenizer = await loadTokenizer(dir);
const pages = readPackages();
const tasks = tasksOf(pages);
const world = worldOf(pages);

const stack = await startStack(['postgres', 'engine'], { profile });
const pool = new pg.Pool({ connectionString: stack.connections.postgres.url });
const { lease, client } = await startTrainer({ python: python(), packageDir, logDir: folder, name: 'fidelity' });
try {
  const store = new ArtifactStore(pool, await openBlobStore({ kind: 'dir', path: join(folder, 'artifacts') }, folder));
  const merged = new MergedWeights({
    store,
    cache: join(folder, 'merged'),
    python: python(),
    packageDir,
    baseDir: () => dir,
    dtype,
  });
  const engines = new RecordedEngines(new EnginePool({ pool, engines: stack.connections.engines, merged }));
  const shared = { client, tokenizer, store, world, base, dtype, threads, folder };
  const checkpoint =
    values.adapter === undefined
      ? await learnToCall({ ...shared, tasks: tasks.slice(0, DEMONSTRATIONS), observationTokens: OBSERVATION_TOKENS })
      : checkpointOf({ ...base, adapters: [await store.putBlob(values.adapter)] });
  const parents = await Promise.all(checkpoint.adapters.map((sha256) => store.openBlob(sha256)));
  await client.call('open', { ...openParams(shared), parents, adapter: { lora_rank: 4 } });
  const asked = tasks.slice(DEMONSTRATIONS, DEMONSTRATIONS + Number(values.count));
  for (const name of settings) {
    const sampling = SETTINGS[name];
    if (sampling === undefined) throw new Error(`no setting ${name}; there are ${Object.keys(SETTINGS).join(', ')}`);
    const began = performance.now();
    const batch = await sampleBatch({
      pool,
      store,
      engines,
      tokenizer,
      world,
      checkpoint,
      name,
      tasks: asked,
      sampling,
      observationTokens: OBSERVATION_TOKENS,
      folder,
    });
    const of = { setting: name, ...sampling, dtype };
    const ids = await compareIds({ batch: batch.path, specs: batch.specs, sampled: engines.sampled });
    const seconds = () => Math.round((performance.now() - began) / 1000);
    console.log(JSON.stringify({ ...of, ...batch.counts, ...ids, seconds: seconds() }));
    const scores = join(folder, `${name}-scores.parquet`);
    const { temperature } = sampling;
    await client.call('score', { batch: batch.path, out: scores, temperature, micro_batch_tokens: 1024 });
    const logprobs = await compareLogprobs({ batch: batch.path, scores });
    console.log(JSON.stringify({ ...of, tokens: ids.tokens, ...logprobs, seconds: seconds() }));
  }
  await engines.close();
} finally {
  client.disconnect();
  await endProcessGroup(lease.pid, lease.startTime);
  await pool.end();
  await stack.stop();
  await rm(folder, { recursive: true, force: true });
}
