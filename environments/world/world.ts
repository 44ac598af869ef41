import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import type { Pool } from 'pg';
import type { CorpusBody, IndexBody } from '../../schemas/artifact.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { IndexParameters } from '../../schemas/node-parameters.ts';
import type { SearchOptions, SearchResponse, SearchResult, VisitOptions, VisitResult, World } from '../environment.ts';
import { analyze } from './analyzer.ts';
import { coalesce } from './coalesce.ts';
import type { Embedder } from './embedder.ts';
import { byScore, type Fusion, fuse, mergeQueries, pagesOfHits, type RankedPage } from './fusion.ts';
import { type ChunkHit, ChunkIndex } from './index.ts';
import { fetchPages, type StoredPage } from './pages.ts';
import { cutToGoal, shareBudget } from './passages.ts';

export interface OpenWorldOptions {
  pool: Pool;
  milvus: MilvusClient;
  embedder: Embedder;
  corpus: CorpusBody;
  index: IndexBody;
  fusion: Fusion;
  /** As the index was built; HNSW over cosine unless given. */
  dense?: IndexParameters['dense'];
  sparse?: IndexParameters['sparse'];
}

const SNIPPET_CHARACTERS = 300;
const MAX_QUERY_CHARACTERS = 2000;
/** Several chunks of a page may rank: so many chunks are asked for each page wanted. */
const CHUNKS_PER_PAGE = 2;
const MIN_DEPTH = 20;
const BATCH_QUERIES = 32;

/**
 * Open a world on a corpus in PostgreSQL and its index in Milvus.
 * Throws INDEX_FINGERPRINT when the collection, or the embedder at hand, is not the one the index was made with.
 */
export async function openWorld(options: OpenWorldOptions): Promise<World> {
  const { milvus, embedder, index: body, dense = { type: 'hnsw', metric: 'cosine' }, sparse = 'bm25' } = options;
  const { embedder: name, embedder_sha256, precision } = body.fingerprint;
  const mine = embedder.fingerprint;
  if (mine.embedder !== name || mine.embedder_sha256 !== embedder_sha256 || mine.precision !== precision) {
    throw new ExpError(
      'INDEX_FINGERPRINT',
      body.collection,
      `made with ${name} ${precision}, the embedder is ${mine.embedder} ${mine.precision}`,
    );
  }
  const index = new ChunkIndex(milvus, body.collection, dense);
  await index.checkFingerprint(body.fingerprint);
  await index.load();
  return new ClosedWorld(options, index, dense.metric, sparse === 'bm25');
}

class ClosedWorld implements World {
  readonly #pool: Pool;
  readonly #corpusKey: string;
  readonly #fusion: Fusion;
  readonly #metric: IndexParameters['dense']['metric'];
  readonly #hasWords: boolean;
  readonly #embed: (query: string) => Promise<Float32Array>;
  readonly #dense: (depth: number, vector: Float32Array) => Promise<ChunkHit[]>;
  readonly #words: (depth: number, query: string) => Promise<ChunkHit[]>;
  readonly #pages: (url: string) => Promise<StoredPage | undefined>;

  constructor(
    { pool, embedder, corpus, fusion }: OpenWorldOptions,
    index: ChunkIndex,
    metric: IndexParameters['dense']['metric'],
    hasWords: boolean,
  ) {
    this.#pool = pool;
    this.#corpusKey = corpus.corpus_key;
    this.#fusion = fusion;
    this.#metric = metric;
    this.#hasWords = hasWords;
    // Concurrent searches travel together: a batch of queries costs the index little more than one.
    const embed = coalesce(
      (_key, texts: readonly string[]) => embedder.embed(texts, { priority: 'query' }),
      BATCH_QUERIES,
    );
    const dense = coalesce(
      (depth, vectors: readonly Float32Array[]) => index.searchDense(vectors, Number(depth)),
      BATCH_QUERIES,
    );
    const words = coalesce(
      (depth, queries: readonly string[]) => index.searchWords(queries, Number(depth)),
      BATCH_QUERIES,
    );
    const pages = coalesce(async (_key, urls: readonly string[]) => {
      const found = await fetchPages(this.#pool, this.#corpusKey, urls);
      return urls.map((url) => found.get(url));
    }, BATCH_QUERIES);
    this.#embed = (query) => embed('', query);
    this.#dense = (depth, vector) => dense(String(depth), vector);
    this.#words = (depth, query) => words(String(depth), query);
    this.#pages = (url) => pages('', url);
  }

  async search(queries: readonly string[], options: SearchOptions): Promise<SearchResponse> {
    const asked = [...new Set(queries.map((query) => query.trim().slice(0, MAX_QUERY_CHARACTERS)))].filter(
      (query) => query !== '',
    );
    if (asked.length === 0 || options.limit < 1) return { results: [], denied: 0 };
    const rankings = await available(Promise.all(asked.map((query) => this.#rank(query, options))));
    const merged = mergeQueries(rankings.map(({ pages }) => pages));
    const queryOf = new Map(rankings.flatMap(({ query, pages }) => pages.map((page) => [page, query] as const)));
    const isDenied = denyList(options.denyUrls);
    const allowed = merged.filter(({ url }) => !isDenied(url));
    const results = allowed.slice(0, options.limit);
    return {
      results: results.map((page) => toResult(page, queryOf.get(page) ?? '')),
      denied: countDenied(merged, isDenied, options.limit),
    };
  }

  async visit(urls: readonly string[], goal: string, options: VisitOptions): Promise<VisitResult[]> {
    const isDenied = denyList(options.denyUrls);
    const asked = [...new Set(urls.map((url) => url.trim()))];
    const found = await available(Promise.all(asked.map((url) => (isDenied(url) ? undefined : this.#pages(url)))));
    const texts = found.map((page) => page?.text ?? '');
    const shares = shareBudget(
      texts.map((text) => tokensNeeded(text, options)),
      options.maxTokens,
    );
    return asked.map((url, i): VisitResult => {
      const page = found[i];
      if (isDenied(url)) return { url, status: 'denied', message: 'this page may not be read for this task' };
      if (!page) return { url, status: 'not_found', message: 'no page of the corpus has this URL' };
      const { text, truncated } = cutToGoal(page.text, goal, shares[i] as number, options.countTokens);
      return { url, status: 'ok', title: page.title, text, truncated };
    });
  }

  /** Pool, client and embedder belong to whoever opened them. */
  async close(): Promise<void> {}

  async #rank(
    query: string,
    { mode = 'fused', limit, denyUrls = [] }: SearchOptions,
  ): Promise<{ query: string; pages: RankedPage[] }> {
    const depth = Math.max(MIN_DEPTH, (limit + denyUrls.length) * CHUNKS_PER_PAGE);
    const [dense, words] = await Promise.all([
      mode === 'bm25' ? [] : this.#embed(query).then((vector) => this.#dense(depth, vector)),
      mode === 'dense' || !this.#hasWords ? [] : this.#words(depth, query),
    ]);
    const densePages = pagesOfHits(dense);
    const wordPages = pagesOfHits(words);
    if (mode === 'dense') return { query, pages: this.#metric === 'l2' ? densePages : densePages.sort(byScore) };
    if (mode === 'bm25') return { query, pages: wordPages.sort(byScore) };
    return { query, pages: fuse(densePages, wordPages, this.#fusion, this.#metric) };
  }
}

/** An outage is thrown, never "no results"; what our own code refused keeps its code. */
async function available<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (error instanceof ExpError && !error.code.startsWith('EMBEDDER_')) throw error;
    const reason = error instanceof Error ? (error.message || error.constructor.name).split('\n')[0] : String(error);
    throw new ExpError('WORLD_UNAVAILABLE', 'world', reason ?? 'no answer', { cause: error });
  }
}

function toResult({ url, title, text, score }: RankedPage, query: string): SearchResult {
  return { url, title, snippet: snippet(text, query), score };
}

/** The part of a chunk where the words of the query are densest, cut at words. */
export function snippet(text: string, query: string): string {
  const flat = text.replace(/\s+/g, ' ').trim();
  if (flat.length <= SNIPPET_CHARACTERS) return flat;
  const wanted = new Set(analyze(query));
  const matches = [...flat.matchAll(/[\p{L}\p{N}'’]+/gu)].filter(([word]) =>
    analyze(word).some((term) => wanted.has(term)),
  );
  let best = 0;
  let bestTerms = 0;
  for (const { index } of matches) {
    const inside = matches.filter((other) => other.index >= index && other.index < index + SNIPPET_CHARACTERS);
    const terms = new Set(inside.flatMap(([word]) => analyze(word))).size;
    if (terms > bestTerms) [best, bestTerms] = [index, terms];
  }
  const start = Math.max(0, Math.min(best - 40, flat.length - SNIPPET_CHARACTERS));
  const from = start === 0 ? 0 : flat.indexOf(' ', start) + 1;
  const end = from + SNIPPET_CHARACTERS >= flat.length ? flat.length : flat.lastIndexOf(' ', from + SNIPPET_CHARACTERS);
  return `${from > 0 ? '… ' : ''}${flat.slice(from, end > from ? end : from + SNIPPET_CHARACTERS)}${end < flat.length ? ' …' : ''}`;
}

function tokensNeeded(text: string, { maxTokens, countTokens }: VisitOptions): number {
  // Far longer than the budget by any tokenizer: counting would only cost time.
  return text.length > maxTokens * 12 ? maxTokens : countTokens(text);
}

/** The same page is not to be had by another spelling of its address. */
function denyList(urls: readonly string[] = []): (url: string) => boolean {
  if (urls.length === 0) return () => false;
  const denied = new Set(urls.map(plainUrl));
  return (url) => denied.has(plainUrl(url));
}

function plainUrl(url: string): string {
  let decoded = url.trim();
  try {
    decoded = decodeURIComponent(decoded);
  } catch {
    // not percent-encoded: taken as it is
  }
  return decoded
    .replace(/^https?:\/\/(?:www\.)?/i, '')
    .replace(/\/+$/, '')
    .toLowerCase();
}

/** Hits that the deny list kept out of what would have been returned. */
function countDenied(ranked: readonly RankedPage[], isDenied: (url: string) => boolean, limit: number): number {
  let allowed = 0;
  let denied = 0;
  for (const { url } of ranked) {
    if (allowed === limit) break;
    if (isDenied(url)) denied += 1;
    else allowed += 1;
  }
  return denied;
}
