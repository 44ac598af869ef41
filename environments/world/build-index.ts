import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import type { Pool } from 'pg';
import type { CorpusBody, IndexBody, IndexFingerprint } from '../../schemas/artifact.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { ChunkParameters, IndexParameters } from '../../schemas/node-parameters.ts';
import { type Chunk, type CountTokens, chunkPage, chunkWithTitle } from './chunker.ts';
import type { Embedder } from './embedder.ts';
import { ChunkIndex, type IndexedChunk } from './index.ts';
import { readPages } from './pages.ts';

export interface BuildIndexOptions {
  pool: Pool;
  milvus: MilvusClient;
  embedder: Embedder;
  countTokens: CountTokens;
  indexKey: string;
  corpus: CorpusBody;
  parameters: Pick<IndexParameters, 'chunk' | 'dense' | 'sparse'>;
  signal: AbortSignal;
  /** Called as chunks are embedded and stored; must not throw. `total` is an estimate until the last page is chunked. */
  onProgress(chunks: number, total: number): void;
}

const SHARD_CHUNKS = 256;
const YIELD_MS = 20;
const WAIT_MS = 2_000;

type PlacedChunk = Chunk & { url: string; title: string };

interface Shard {
  number: number;
  chunks: PlacedChunk[];
}

export function indexFingerprint(embedder: Embedder, chunk: ChunkParameters, corpus: CorpusBody): IndexFingerprint {
  const { tokens, overlap } = chunk;
  return { ...embedder.fingerprint, chunk: { tokens, overlap }, corpus_digest: corpus.fingerprint };
}

export function collectionName(indexKey: string): string {
  return `exp_${indexKey.slice(0, 40)}`;
}

/**
 * Chunk, embed and insert a corpus, shard by shard; shard n + 1 is embedded while n is inserted. A sealed shard is
 * durable in Milvus and never done again; a half-written one is upserted. Publishable when it returns.
 *
 * Throws INDEX_FINGERPRINT when the collection was made otherwise, INDEX_INCOMPLETE when rows are missing in the end:
 * then everything is cleared, and the next attempt starts afresh.
 */
export async function buildIndex(options: BuildIndexOptions): Promise<IndexBody> {
  const { milvus, indexKey, corpus, parameters } = options;
  const fingerprint = indexFingerprint(options.embedder, parameters.chunk, corpus);
  const index = new ChunkIndex(milvus, collectionName(indexKey), parameters.dense);
  const estimate = estimateChunks(corpus, parameters.chunk);
  let embedded = 0;
  const report = (chunks: number): void => {
    embedded = chunks;
    options.onProgress(chunks, Math.max(chunks, estimate));
  };
  // Embedding reports by itself. All else here is calls to services, each with a deadline of its own: waiting for one
  // is not hanging.
  const waiting = (): NodeJS.Timeout => setInterval(() => report(embedded), WAIT_MS);

  let timer = waiting();
  try {
    await prepare(options, index, fingerprint);
    const sealed = await sealedShards(options.pool, indexKey);
    clearInterval(timer);
    const chunks = await ingest(options, index, sealed, report);
    timer = waiting();
    await finish(options, index, chunks);
    options.onProgress(chunks, chunks);
    return { collection: index.collection, chunks, fingerprint };
  } finally {
    clearInterval(timer);
  }
}

/** The collection is there and made as wanted; a new one has no sealed shards. */
async function prepare(
  { pool, indexKey, parameters }: BuildIndexOptions,
  index: ChunkIndex,
  fingerprint: IndexFingerprint,
): Promise<void> {
  if (await index.exists()) {
    await index.checkFingerprint(fingerprint);
    return;
  }
  await pool.query('delete from index_shards where index_key = $1', [indexKey]);
  await index.create(fingerprint, parameters.sparse);
}

/** Embed and insert what is not sealed yet; returns how many chunks there are in all. */
async function ingest(
  options: BuildIndexOptions,
  index: ChunkIndex,
  sealed: SealedShards,
  report: (chunks: number) => void,
): Promise<number> {
  let embedded = sealed.chunks;
  let stored = sealed.chunks;
  let inserting: Promise<void> = Promise.resolve();
  try {
    for await (const shard of unsealedShards(options, sealed)) {
      options.signal.throwIfAborted();
      const vectors = await embedShard(options, shard, () => {
        embedded += 1;
        report(embedded);
      });
      await inserting;
      inserting = insertShard(options, index, shard, vectors).then(() => {
        stored += shard.chunks.length;
        report(embedded);
      });
      inserting.catch(() => undefined); // awaited before the next insert
    }
  } finally {
    await inserting;
  }
  return stored;
}

/** What was written can be read, all of it; else everything is cleared. */
async function finish({ pool, indexKey }: BuildIndexOptions, index: ChunkIndex, chunks: number): Promise<void> {
  await index.flush();
  const stored = await index.count();
  if (stored === chunks) return;
  await index.drop();
  await pool.query('delete from index_shards where index_key = $1', [indexKey]);
  throw new ExpError(
    'INDEX_INCOMPLETE',
    index.collection,
    `${stored} chunks are stored where ${chunks} were sealed; start again`,
  );
}

/** Whether the collection a manifest promises is there, with its fingerprint and all its rows. */
export async function verifyIndex(
  milvus: MilvusClient,
  body: IndexBody,
  dense: IndexParameters['dense'],
): Promise<boolean> {
  const index = new ChunkIndex(milvus, body.collection, dense);
  if (!(await index.exists())) return false;
  try {
    await index.checkFingerprint(body.fingerprint);
  } catch (error) {
    if (error instanceof ExpError && error.code === 'INDEX_FINGERPRINT') return false;
    throw error;
  }
  return (await index.count()) === body.chunks;
}

interface SealedShards {
  /** Shards are sealed in order, so what is sealed is a prefix. */
  shards: number;
  chunks: number;
  lastUrl: string;
  lastOrd: number;
}

async function sealedShards(pool: Pool, indexKey: string): Promise<SealedShards> {
  const { rows } = await pool.query<{ shard: number; chunks: number; last_url: string; last_ord: number }>(
    'select shard, chunks, last_url, last_ord from index_shards where index_key = $1 order by shard',
    [indexKey],
  );
  const last = rows.at(-1);
  return {
    shards: rows.length,
    chunks: rows.reduce((sum, { chunks }) => sum + chunks, 0),
    lastUrl: last?.last_url ?? '',
    lastOrd: last?.last_ord ?? -1,
  };
}

/** Chunks after the last sealed one, in the order of URL and place, in shards of equal size. */
async function* unsealedShards(options: BuildIndexOptions, sealed: SealedShards): AsyncGenerator<Shard> {
  const { pool, corpus, parameters, countTokens } = options;
  let number = sealed.shards;
  let pending: PlacedChunk[] = [];
  let yieldedAt = performance.now();
  for await (const { url, title, text } of readPages(pool, corpus.corpus_key, sealed.lastUrl)) {
    for (const chunk of chunkPage(text, parameters.chunk, countTokens)) {
      if (url === sealed.lastUrl && chunk.ord <= sealed.lastOrd) continue;
      pending.push({ ...chunk, url, title });
    }
    while (pending.length >= SHARD_CHUNKS) {
      yield { number: number++, chunks: pending.slice(0, SHARD_CHUNKS) };
      pending = pending.slice(SHARD_CHUNKS);
    }
    if (performance.now() - yieldedAt > YIELD_MS) {
      await new Promise(setImmediate); // chunking is work too: heartbeats and cancellation need a turn
      yieldedAt = performance.now();
    }
  }
  if (pending.length > 0) yield { number, chunks: pending };
}

function embedShard(
  { embedder, signal }: BuildIndexOptions,
  shard: Shard,
  onText: () => void,
): Promise<Float32Array[]> {
  return embedder.embed(
    shard.chunks.map(({ title, text }) => chunkWithTitle(title, text)),
    { priority: 'index', onText, signal },
  );
}

async function insertShard(
  { pool, indexKey, parameters }: BuildIndexOptions,
  index: ChunkIndex,
  shard: Shard,
  vectors: Float32Array[],
): Promise<void> {
  const rows: IndexedChunk[] = shard.chunks.map((chunk, i) => ({ ...chunk, dense: vectors[i] as Float32Array }));
  await index.upsert(rows, parameters.sparse);
  const last = shard.chunks.at(-1) as PlacedChunk;
  await pool.query(
    `insert into index_shards (index_key, shard, chunks, last_url, last_ord) values ($1, $2, $3, $4, $5)
     on conflict do nothing`,
    [indexKey, shard.number, shard.chunks.length, last.url, last.ord],
  );
}

/** About four bytes a token, and every page has a chunk. */
function estimateChunks(corpus: CorpusBody, { tokens, overlap }: ChunkParameters): number {
  return Math.max(corpus.pages, Math.round(corpus.bytes / 4 / Math.max(1, tokens - overlap)));
}
