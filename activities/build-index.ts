import { Context } from '@temporalio/activity';
import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import type { Pool } from 'pg';
import { buildIndex, verifyIndex } from '../environments/world/build-index.ts';
import type { CountTokens } from '../environments/world/chunker.ts';
import type { Embedder } from '../environments/world/embedder.ts';
import type { CorpusBody } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import { type IndexParameters, nodeOf } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { CpuActivities } from './index.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { throttled } from './throttled-progress.ts';

export interface IndexDeps {
  plans: PlanReader;
  store: ArtifactStore;
  pool: Pool;
  milvus: MilvusClient;
  embedders: {
    open(embedder: Pick<IndexParameters['embedder'], 'model' | 'precision'>): Promise<Embedder>;
    tokenCounter(model: string): Promise<CountTokens>;
  };
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
}

export const createIndexActivities = ({
  plans,
  store,
  pool,
  milvus,
  embedders,
  progress,
}: IndexDeps): Pick<CpuActivities, 'buildIndex'> => ({
  /**
   * Embed and insert the chunks of one corpus, shard by shard, and publish the manifest.
   *
   * Runs again after a crash: sealed shards are skipped, a half-written one is upserted by chunk id. What the manifest
   * promises is counted before it is published. Throws INDEX_FINGERPRINT when the collection was built otherwise.
   */
  buildIndex: (ref) =>
    withPulse(async (moved) => {
      const signal = Context.current().cancellationSignal;
      const { parameters } = nodeOf('index', await plans.node(ref));
      const corpus = (await plans.input(ref, 'corpus')).body as unknown as CorpusBody;
      const embedder = await embedders.open(parameters.embedder);
      checkEmbedder(ref.id, embedder, parameters.embedder);

      const startedAt = performance.now();
      let total = 0;
      const report = throttled((done, detail) => progress(ref.key, done, total, detail));
      const body = await buildIndex({
        pool,
        milvus,
        embedder,
        countTokens: await embedders.tokenCounter(parameters.embedder.model),
        indexKey: ref.key,
        corpus,
        parameters,
        signal,
        onProgress(done, expected) {
          if (signal.aborted) return; // the work itself stops at its next step
          moved();
          total = expected;
          report(done, 'chunks');
        },
      });
      if (!(await verifyIndex(milvus, body, parameters.dense))) {
        throw new ExpError('INDEX_INCOMPLETE', ref.id, 'the collection is not what was written to it');
      }
      await report.last();
      await progress(ref.key, body.chunks, body.chunks, `${body.chunks} chunks of ${corpus.pages} pages`);
      const values = { 'index/chunks': body.chunks, 'index/seconds': (performance.now() - startedAt) / 1000 };
      const timestamp_ms = Date.now();
      return store.publish({
        key: ref.key,
        kind: 'index',
        inputs: await plans.lineage(ref),
        files: {},
        body,
        metrics: Object.entries(values).map(([name, value]) => ({ name, step: 0, value, timestamp_ms })),
        made_with: { embedder: `${embedder.model.name} ${embedder.model.precision}` },
      });
    }),
});

/** The plan froze which weights are meant; other ones must not slip in under their name. */
function checkEmbedder(at: string, { model, dimension }: Embedder, planned: IndexParameters['embedder']): void {
  if (model.folderDigest !== null && model.folderDigest !== planned.sha256) {
    throw new ExpError(
      'EMBEDDER_DIGEST',
      at,
      `the plan was made with ${planned.model} ${planned.sha256}, here it is ${model.folderDigest}`,
    );
  }
  if (dimension !== planned.dimension) {
    throw new ExpError(
      'EMBEDDER_DIGEST',
      at,
      `${planned.model} has ${dimension} dimensions, the plan says ${planned.dimension}`,
    );
  }
}
