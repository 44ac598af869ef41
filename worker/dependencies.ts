import { mkdirSync } from 'node:fs';
import { availableParallelism, hostname } from 'node:os';
import { join } from 'node:path';
import { Client } from '@temporalio/client';
import { NativeConnection } from '@temporalio/worker';
import pg from 'pg';
import { ArtifactStore } from '../activities/adapters/artifact-store.ts';
import { openBlobStore } from '../activities/adapters/blob-store.ts';
import { EnginePool } from '../activities/adapters/engine.ts';
import { MergedWeights } from '../activities/adapters/merged-weights.ts';
import { Mlflow } from '../activities/adapters/mlflow.ts';
import { createMlflowDelivery, REFUSED_CODES } from '../activities/adapters/mlflow-delivery.ts';
import { Outbox } from '../activities/adapters/outbox.ts';
import { PoolLedger } from '../activities/adapters/pool-ledger.ts';
import { RayJobs } from '../activities/adapters/ray-jobs.ts';
import { SpendLedger } from '../activities/adapters/spend-ledger.ts';
import { StepLedger } from '../activities/adapters/step-ledger.ts';
import { TrainerHost } from '../activities/adapters/trainer-host.ts';
import { TurnJournal } from '../activities/adapters/turn-journal.ts';
import { Judges } from '../activities/judges.ts';
import { NodeProgress } from '../activities/node-progress.ts';
import { PlanReader } from '../activities/plan-reader.ts';
import { createLiveTracking } from '../activities/tracking.ts';
import type { TrainStageDeps } from '../activities/train-stage.ts';
import { verifyLive } from '../activities/verify-live.ts';
import type { Ray } from '../activities/verl-folder.ts';
import { Embedders, Tokenizers, Worlds } from '../activities/worlds.ts';
import { connectMilvus } from '../environments/world/milvus.ts';
import { loadProfile } from '../plan/profile.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import type { Profile } from '../schemas/profile.ts';
import { connections, resolveSecret, temporalOptions } from '../services/connections.ts';
import { home, python, repoRoot } from '../services/home.ts';
import { modelPath } from '../services/programs.ts';

/** What every activity may depend on, opened once per worker process. Nothing dials before it is used. */
export async function openDependencies() {
  const profile = loadProfile(process.env['EXP_PROFILE'] ?? 'local', join(repoRoot(), 'profiles'));
  const addresses = await connections(profile);
  const { namespace } = addresses.temporal;
  const connection = await NativeConnection.connect(temporalOptions(addresses.temporal));
  const client = new Client({ connection, namespace });

  const pool = new pg.Pool({ connectionString: addresses.postgres.url, max: 24, connectionTimeoutMillis: 10_000 });
  pool.on('error', () => {}); // an idle connection broke: the next query opens another or says so
  const blobs = await openBlobStore(addresses.artifacts, join(home(), 'cache', 'blobs'));
  const store = new ArtifactStore(pool, blobs, {
    code: process.env['EXP_BUILD']?.slice(0, 12) ?? 'unknown',
    host: hostname(),
    node: process.versions.node,
  });
  const plans = new PlanReader(store);
  const progress = new NodeProgress(pool);
  const milvus = connectMilvus(addresses.milvus);
  const modelDir = (model: string) => modelPath(profile, model);
  const embedders = new Embedders((model) => modelPath(profile, model, 'embedders'));
  const worlds = new Worlds({ plans, pool, milvus, embedders });
  const judges = new Judges({ plans, secret: resolveSecret });
  const work = join(home(), 'work');
  mkdirSync(work, { recursive: true });

  const packageDir = join(repoRoot(), 'trainer');
  const merged = new MergedWeights({
    store,
    cache: join(home(), 'cache', 'merged', profile.serving_dtype),
    python: python(),
    packageDir,
    baseDir: modelDir,
    dtype: profile.serving_dtype,
  });
  const engines = new EnginePool({ pool, engines: addresses.engines, merged });
  const host = new TrainerHost({
    pool,
    host: hostname(),
    logDir: join(home(), 'logs'),
    python: python(),
    packageDir,
    launcher: profile.launchers[profile.launcher] as Profile['launchers'][string], // loadProfile refuses any other
  });
  const mlflow = new Mlflow({ ...addresses.mlflow, pool });
  const outbox = new Outbox({
    pool,
    deliver: createMlflowDelivery({ pool, mlflow, store }),
    refusedCodes: REFUSED_CODES,
    log: (line) => console.log(line),
  });

  return {
    connection,
    namespace,
    verifyLive: (artifact: ArtifactRef) => verifyLive({ pool, store, milvus }, artifact),
    modelDir,
    packageDir,
    servingDtype: profile.serving_dtype,
    ray: openRay(profile),
    // As many as the engine: the one that does not work sleeps, and both at once lose little (docs/decisions/0008).
    trainer: {
      threads: availableParallelism(),
      micro_batch_tokens: 1024,
    } satisfies TrainStageDeps['trainer'],
    client,
    pool,
    store,
    plans,
    progress,
    milvus,
    embedders,
    worlds,
    judges,
    work,
    merged,
    engines,
    host,
    outbox,
    ledger: new StepLedger(pool),
    pools: new PoolLedger(pool),
    spend: new SpendLedger({ pool, plans, prices: profile.prices }),
    journal: new TurnJournal(pool),
    tokenizers: new Tokenizers(modelDir),
    queues: {
      cpu: `${profile.queue_prefix}-cpu`,
      rollout: `${profile.queue_prefix}-rollout`,
      gpu: `${profile.queue_prefix}-gpu`,
      host: `${profile.queue_prefix}-gpu@${hostname()}`,
    },
    workflowBundle: join(import.meta.dirname, '..', 'workflow-bundle.js'),
    /** One worker of the stack sends the outbox; the others find its lock taken. */
    startDraining() {
      const stopping = new AbortController();
      const drained = outbox.drain({
        signal: stopping.signal,
        feed: createLiveTracking({ pool, outbox, plans }).trackRunning,
      });
      return {
        async stop() {
          stopping.abort();
          await drained;
        },
      };
    },
    async close() {
      await worlds.close();
      await embedders.close();
      await connection.close();
      await pool.end();
    },
  };
}

/** Null where the profile has no Ray cluster. */
function openRay(profile: Profile): Ray | null {
  const { ray: cluster } = profile;
  if (cluster === undefined) return null;
  const token = cluster.token && resolveSecret(cluster.token, `profile ${profile.name}: ray.token`);
  return { cluster, jobs: new RayJobs({ address: cluster.address, ...(token !== undefined && { token }) }) };
}

export type Dependencies = Awaited<ReturnType<typeof openDependencies>>;
