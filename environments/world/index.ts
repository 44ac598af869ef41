import { createHash } from 'node:crypto';
import { ConsistencyLevelEnum, DataType, FunctionType, type MilvusClient } from '@zilliz/milvus2-sdk-node';
import type { IndexFingerprint } from '../../schemas/artifact.ts';
import { canonicalJson } from '../../schemas/canonical.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { IndexParameters } from '../../schemas/node-parameters.ts';
import { analyze } from './analyzer.ts';
import { chunkWithTitle } from './chunker.ts';
import { milvusCall, TIMEOUT_MS } from './milvus.ts';

/** One row of the index, before Milvus adds its BM25 vector. */
export interface IndexedChunk {
  url: string;
  title: string;
  ord: number;
  start: number;
  end: number;
  text: string;
  dense: Float32Array;
}

export interface ChunkHit {
  url: string;
  title: string;
  ord: number;
  text: string;
  /** As Milvus gives it; larger is better (BM25 of Milvus Lite is negated back). */
  score: number;
}

const FINGERPRINT_PROPERTY = 'exp.fingerprint';
// VarChar fields of Milvus hold at most this many bytes.
const MAX_VARCHAR = 65_535;
const MAX_TITLE_BYTES = 2_000;
// Lucene's values, so that figures can be compared with its own.
const BM25 = { bm25_k1: 1.2, bm25_b: 0.75 };
const HNSW = { M: 16, efConstruction: 200 };
const DENSE_INDEX = { hnsw: 'HNSW', flat: 'FLAT', diskann: 'DISKANN' } as const;
const MIN_EF = 64;

type DenseParameters = IndexParameters['dense'];

/** Chunks of one corpus in one Milvus collection: a dense vector and a BM25 vector each. */
export class ChunkIndex {
  readonly collection: string;
  readonly #milvus: MilvusClient;
  readonly #dense: DenseParameters;
  #loading: Promise<void> | null = null;

  constructor(milvus: MilvusClient, collection: string, dense: DenseParameters) {
    this.#milvus = milvus;
    this.collection = collection;
    this.#dense = dense;
  }

  async exists(): Promise<boolean> {
    const answer = await milvusCall('hasCollection', this.#milvus.hasCollection({ collection_name: this.collection }));
    return Boolean(answer.value);
  }

  /** Make the collection, empty. */
  async create(fingerprint: IndexFingerprint, sparse: IndexParameters['sparse']): Promise<void> {
    const { type, metric } = this.#dense;
    const hasWords = sparse === 'bm25';
    const stamp = canonicalJson(fingerprint);
    const request = {
      collection_name: this.collection,
      description: stamp,
      properties: { [FINGERPRINT_PROPERTY]: stamp },
      fields: [
        { name: 'id', data_type: DataType.VarChar, is_primary_key: true, max_length: 64 },
        { name: 'url', data_type: DataType.VarChar, max_length: 4096 },
        { name: 'title', data_type: DataType.VarChar, max_length: MAX_TITLE_BYTES },
        { name: 'ord', data_type: DataType.Int64 },
        { name: 'start', data_type: DataType.Int64 },
        { name: 'end', data_type: DataType.Int64 },
        { name: 'text', data_type: DataType.VarChar, max_length: MAX_VARCHAR },
        { name: 'dense', data_type: DataType.FloatVector, dim: fingerprint.dimension },
        ...(hasWords ? WORD_FIELDS : []),
      ],
      ...(hasWords && { functions: [BM25_FUNCTION] }),
      index_params: [
        {
          field_name: 'dense',
          index_type: DENSE_INDEX[type],
          metric_type: metric.toUpperCase(),
          params: type === 'hnsw' ? HNSW : {},
        },
        ...(hasWords
          ? [{ field_name: 'sparse', index_type: 'SPARSE_INVERTED_INDEX', metric_type: 'BM25', params: BM25 }]
          : []),
      ],
    };
    await milvusCall('createCollection', this.#milvus.createCollection(request));
  }

  async drop(): Promise<void> {
    await milvusCall('dropCollection', this.#milvus.dropCollection({ collection_name: this.collection }));
    this.#loading = null;
  }

  /** Throws INDEX_FINGERPRINT when the collection was made otherwise: another embedder, chunking or corpus. */
  async checkFingerprint(expected: IndexFingerprint): Promise<void> {
    const answer = await milvusCall(
      'describeCollection',
      this.#milvus.describeCollection({ collection_name: this.collection }),
    );
    const property = answer.properties?.find(({ key }) => key === FINGERPRINT_PROPERTY)?.value;
    const found = String(property ?? answer.schema?.description ?? '');
    const wanted = canonicalJson(expected);
    if (found === wanted) return;
    throw new ExpError(
      'INDEX_FINGERPRINT',
      this.collection,
      `made with ${found || 'no fingerprint'}, wanted ${wanted}`,
    );
  }

  /** Insert or replace chunks; the id of a chunk follows from its place, so a second attempt leaves no second row. */
  async upsert(chunks: readonly IndexedChunk[], sparse: IndexParameters['sparse']): Promise<void> {
    const data = chunks.map(({ url, title, ord, start, end, text, dense }) => ({
      id: chunkId(url, ord),
      url,
      title: cutBytes(title, MAX_TITLE_BYTES),
      ord,
      start,
      end,
      text: cutBytes(text, MAX_VARCHAR),
      dense: Array.from(dense),
      ...(sparse === 'bm25' && { terms: cutBytes(analyze(chunkWithTitle(title, text)).join(' '), MAX_VARCHAR) }),
    }));
    // Without a limit of its own the SDK would wait a day for a write.
    await milvusCall('upsert', this.#milvus.upsert({ collection_name: this.collection, data, timeout: TIMEOUT_MS }));
  }

  async flush(): Promise<void> {
    await milvusCall('flush', this.#milvus.flushSync({ collection_names: [this.collection] }));
  }

  /** Rows, as seen by a reader that waits for every write before it. */
  async count(): Promise<number> {
    await this.load();
    const query = {
      collection_name: this.collection,
      filter: '',
      output_fields: ['count(*)'],
      consistency_level: ConsistencyLevelEnum.Strong,
    };
    const answer = await milvusCall('count', this.#milvus.query(query));
    return Number(answer.data[0]?.['count(*)']);
  }

  /** Into the server's memory; needed once, and again when the server was restarted. */
  load(): Promise<void> {
    this.#loading ??= milvusCall(
      'loadCollection',
      this.#milvus.loadCollectionSync({ collection_name: this.collection }),
    ).then(() => undefined);
    this.#loading.catch(() => {
      this.#loading = null;
    });
    return this.#loading;
  }

  /** Nearest chunks of each vector, best first. */
  searchDense(vectors: readonly Float32Array[], limit: number): Promise<ChunkHit[][]> {
    const params = this.#dense.type === 'hnsw' ? { ef: Math.max(MIN_EF, limit) } : {};
    return this.#search(
      'dense',
      vectors.map((vector) => Array.from(vector)),
      this.#dense.metric.toUpperCase(),
      limit,
      params,
    );
  }

  /** Best chunks of each query by BM25. A query without a single known kind of word finds nothing. */
  async searchWords(queries: readonly string[], limit: number): Promise<ChunkHit[][]> {
    const analyzed = queries.map((query) => analyze(query).join(' '));
    const asked = analyzed.filter((terms) => terms !== '');
    const found = asked.length === 0 ? [] : await this.#search('sparse', asked, 'BM25', limit, {});
    let next = 0;
    return analyzed.map((terms) => (terms === '' ? [] : (found[next++] ?? [])));
  }

  async #search(
    field: string,
    data: unknown[],
    metric: string,
    limit: number,
    params: Record<string, number>,
  ): Promise<ChunkHit[][]> {
    const request = {
      collection_name: this.collection,
      anns_field: field,
      data: data as string[],
      limit,
      metric_type: metric,
      params,
      output_fields: ['url', 'title', 'ord', 'text'],
      consistency_level: ConsistencyLevelEnum.Bounded,
    };
    await this.load();
    const answer = await milvusCall('search', this.#milvus.search(request)).catch(async (error: ExpError) => {
      if (!/not loaded|not load|released/i.test(error.message)) throw error;
      this.#loading = null; // a restarted server has nothing in memory
      await this.load();
      return milvusCall('search', this.#milvus.search(request));
    });
    // One query comes back flat, several nested.
    const results = (data.length === 1 ? [answer.results] : answer.results) as unknown as RawHit[][];
    return results.map((hits) =>
      hits.map(({ url, title, ord, text, score }) => ({
        url,
        title,
        ord: Number(ord),
        text,
        score: metric === 'BM25' ? Math.abs(score) : score,
      })),
    );
  }
}

interface RawHit {
  url: string;
  title: string;
  ord: string;
  text: string;
  score: number;
}

const WORD_FIELDS = [
  {
    name: 'terms',
    data_type: DataType.VarChar,
    max_length: MAX_VARCHAR,
    enable_analyzer: true,
    analyzer_params: { tokenizer: 'standard' },
  },
  { name: 'sparse', data_type: DataType.SparseFloatVector, is_function_output: true },
];

const BM25_FUNCTION = {
  name: 'bm25',
  description: '',
  type: FunctionType.BM25,
  input_field_names: ['terms'],
  output_field_names: ['sparse'],
  params: {},
};

function chunkId(url: string, ord: number): string {
  return createHash('sha256').update(`${url}\n${ord}`).digest('hex').slice(0, 32);
}

/** The longest prefix of at most so many UTF-8 bytes, whole characters only. */
function cutBytes(text: string, maxBytes: number): string {
  if (text.length * 3 <= maxBytes || Buffer.byteLength(text) <= maxBytes) return text;
  const bytes = Buffer.from(text).subarray(0, maxBytes);
  return new TextDecoder('utf-8').decode(bytes).replace(/\ufffd+$/, '');
}
