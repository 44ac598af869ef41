import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import type { Pool } from 'pg';
import { verifyIndex } from '../environments/world/build-index.ts';
import { verifyPages } from '../environments/world/pages.ts';
import type { ArtifactRef, CorpusBody, IndexBody } from '../schemas/artifact.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';

export interface VerifyLiveDeps {
  pool: Pool;
  store: ArtifactStore;
  milvus: MilvusClient;
}

/** Pages and indexes live in services: their artifact counts only while they are there, unchanged. */
export async function verifyLive({ pool, store, milvus }: VerifyLiveDeps, artifact: ArtifactRef): Promise<boolean> {
  if (artifact.kind !== 'corpus' && artifact.kind !== 'index') return true;
  const { body } = await store.manifest(artifact);
  if (artifact.kind === 'corpus') return verifyPages(pool, body as unknown as CorpusBody);
  return verifyIndex(milvus, body as unknown as IndexBody, { type: 'hnsw', metric: 'cosine' });
}
