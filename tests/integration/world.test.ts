// The world on real PostgreSQL, Milvus Lite and the real embedder, over a corpus small enough to count by hand.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { World } from '../../environments/environment.ts';
import { buildIndex, verifyIndex } from '../../environments/world/build-index.ts';
import { chunkPage } from '../../environments/world/chunker.ts';
import { type Embedder, openEmbedder } from '../../environments/world/embedder.ts';
import { tokenCounter } from '../../environments/world/embedder-model.ts';
import { type LoadCorpusOptions, loadCorpus } from '../../environments/world/load-corpus.ts';
import { connectMilvus } from '../../environments/world/milvus.ts';
import { readPages, verifyPages } from '../../environments/world/pages.ts';
import { openWorld } from '../../environments/world/world.ts';
import type { CorpusBody, IndexBody } from '../../schemas/artifact.ts';
import { contentKey } from '../../schemas/canonical.ts';
import type { CorpusSource, IndexParameters } from '../../schemas/node-parameters.ts';
import { modelsDir } from '../../services/home.ts';
import { startStack, type TestStack } from '../services.ts';

const MODEL = join(modelsDir(), 'all-minilm-l6-v2');
const SOURCE: CorpusSource = {
  kind: 'jsonl',
  fields: { url: 'url', id: 'id', title: 'title', text: 'text' },
  limit: null,
  licence: 'CC0-1.0',
  provenance: 'written for this test',
};
const PARAMETERS: Pick<IndexParameters, 'chunk' | 'dense' | 'sparse'> = {
  chunk: { tokens: 40, overlap: 8 },
  dense: { type: 'hnsw', metric: 'cosine' },
  sparse: 'bm25',
};
const FUSION = { kind: 'rrf', k: 60 } as const;
const never = new AbortController().signal;
/** Key of the index that has several shards. */
const LARGE = 'large';

let stack: TestStack;
let pool: pg.Pool;
let milvus: MilvusClient;
let embedder: Embedder;
let countTokens: (text: string) => number;
let folder: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'world-'));
  stack = await startStack(['postgres', 'milvus']);
  pool = new pg.Pool({ connectionString: stack.connections.postgres.url });
  milvus = connectMilvus(stack.connections.milvus);
  embedder = await openEmbedder({ folder: MODEL, model: 'all-minilm-l6-v2', precision: 'int8', processes: 2 });
  countTokens = await tokenCounter(MODEL);
});

afterAll(async () => {
  await embedder?.close();
  await milvus?.closeConnection();
  await pool?.end();
  await stack?.stop();
  rmSync(folder, { recursive: true, force: true });
});

interface Row {
  url: string;
  title: string;
  text: string;
}

/** Pages about invented rivers: each has words that no other has. */
function rivers(count: number): Row[] {
  return Array.from({ length: count }, (_, i) => ({
    url: `https://rivers.example/${i}`,
    title: `River Orvane${i}`,
    text: Array.from(
      { length: 4 },
      (_unused, k) => `The Orvane${i} passes bridge ${i * 31 + k} in the town of Karsu${i}, known for mill ${k}.`,
    ).join(' '),
  }));
}

function options(key: string, rows: readonly Row[], overrides: Partial<LoadCorpusOptions> = {}): LoadCorpusOptions {
  const path = join(folder, `${key}.jsonl`);
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join('\n'));
  return {
    pool,
    corpusKey: contentKey(key),
    sources: { web: SOURCE },
    limit: { pages: null, chunks: null },
    nearDuplicates: null,
    paths: { web: path },
    countChunks: (text) => chunkPage(text, PARAMETERS.chunk, countTokens).length,
    signal: never,
    onProgress: () => undefined,
    ...overrides,
  };
}

async function storedUrls(corpusKey: string): Promise<string[]> {
  const urls: string[] = [];
  for await (const { url } of readPages(pool, corpusKey)) urls.push(url);
  return urls;
}

describe('the pages of a corpus', () => {
  test('are stored once, with duplicates dropped and counted; a second load changes nothing', async () => {
    const rows = rivers(30);
    const [first, second] = rows as [Row, Row];
    const doubled = [
      ...rows,
      { ...first, url: 'https://mirror.example/0' },
      { ...second, text: `${second.text} Changed.` },
    ];
    const body = await loadCorpus(options('doubled', doubled));
    expect(body).toMatchObject({
      pages: 30,
      dropped: { exact_duplicates: 1, repeated_urls: 1, near_duplicates: 0, over_limit: 0 },
    });
    expect(body.sources).toEqual([
      { name: 'web', kind: 'jsonl', licence: 'CC0-1.0', provenance: 'written for this test', pages: 30 },
    ]);
    expect(await storedUrls(body.corpus_key)).not.toContain('https://mirror.example/0');
    expect(await loadCorpus(options('doubled', doubled))).toEqual(body);
  });

  test('with near duplicates keep the first of each kind', async () => {
    const long = (seed: number) =>
      Array.from({ length: 200 }, (_, i) => `w${(i * 7919 + seed * 104_729) % 5000}`).join(' ');
    const rows = [1, 2, 3].flatMap((seed) => [
      { url: `https://a.example/${seed}`, title: 'Same', text: long(seed) },
      { url: `https://b.example/${seed}`, title: 'Same', text: `${long(seed)} one more` },
    ]);
    const body = await loadCorpus(options('near', rows, { nearDuplicates: { threshold: 0.9 } }));
    expect(body.dropped.near_duplicates).toBe(3);
    expect(await storedUrls(body.corpus_key)).toEqual([
      'https://a.example/1',
      'https://a.example/2',
      'https://a.example/3',
    ]);
    expect((await pool.query('select 1 from page_bands')).rowCount).toBe(0);
  });

  test('under a limit of chunks are those that come first by hash; a larger limit contains a smaller one', async () => {
    const rows = rivers(60);
    const weigh = (url: string) =>
      chunkPage(rows.find((row) => row.url === url)?.text ?? '', PARAMETERS.chunk, countTokens).length;
    const small = await loadCorpus(options('small', rows, { limit: { pages: null, chunks: 40 } }));
    const large = await loadCorpus(options('large', rows, { limit: { pages: null, chunks: 80 } }));
    const [few, more] = [await storedUrls(small.corpus_key), await storedUrls(large.corpus_key)];
    const chunks = few.reduce((sum, url) => sum + weigh(url), 0);
    expect(chunks).toBeLessThanOrEqual(40);
    expect(chunks).toBeGreaterThan(34);
    expect(more).toEqual(expect.arrayContaining(few));
    expect(small.dropped.over_limit).toBe(60 - few.length);
    expect((await loadCorpus(options('ten', rows, { limit: { pages: 10, chunks: null } }))).pages).toBe(10);
  });

  test('are the same after a load that was cut off in the middle', async () => {
    const rows = rivers(1000);
    const stop = new AbortController();
    const cutOff = options('cut', rows, {
      signal: stop.signal,
      onProgress: (pages) => pages >= 400 && stop.abort(new Error('cut off')),
    });
    await expect(loadCorpus(cutOff)).rejects.toThrow('cut off');
    expect((await storedUrls(contentKey('cut'))).length).toBe(400);
    const whole = await loadCorpus(options('whole', rows));
    const resumed = await loadCorpus(options('cut', rows));
    expect(resumed).toEqual({ ...whole, corpus_key: contentKey('cut') });
  });

  test('verify while they are there, and no longer when one is gone', async () => {
    const body = await loadCorpus(options('verified', rivers(5)));
    expect(await verifyPages(pool, body)).toBe(true);
    await pool.query('delete from corpus_pages where corpus_key = $1 and url = $2', [
      body.corpus_key,
      'https://rivers.example/3',
    ]);
    expect(await verifyPages(pool, body)).toBe(false);
    expect(await loadCorpus(options('verified', rivers(5)))).toEqual(body);
  });
});

describe('an index', () => {
  let corpus: CorpusBody;
  let small: CorpusBody;
  beforeAll(async () => {
    corpus = await loadCorpus(options('indexed', rivers(150)));
    small = await loadCorpus(options('small_indexed', rivers(40)));
  });

  const build = (key: string, overrides: Partial<Parameters<typeof buildIndex>[0]> = {}) =>
    buildIndex({
      pool,
      milvus,
      embedder,
      countTokens,
      indexKey: contentKey(key),
      corpus: key === LARGE ? corpus : small,
      parameters: PARAMETERS,
      signal: never,
      onProgress: () => undefined,
      ...overrides,
    });

  /** Counts what is embedded for indexing. */
  const counting = (): Embedder & { texts: number } => {
    const spy = {
      texts: 0,
      model: embedder.model,
      dimension: embedder.dimension,
      fingerprint: embedder.fingerprint,
      close: () => Promise.resolve(),
      embed: (texts: readonly string[], how: Parameters<Embedder['embed']>[1]) => {
        spy.texts += texts.length;
        return embedder.embed(texts, how);
      },
    };
    return spy;
  };

  test('that was cut off goes on after its last sealed shard, and ends with each chunk once', async () => {
    const stop = new AbortController();
    const sealed = async () =>
      Number(
        (
          await pool.query('select coalesce(sum(chunks), 0) as n from index_shards where index_key = $1', [
            contentKey(LARGE),
          ])
        ).rows[0].n,
      );
    const first = build(LARGE, {
      signal: stop.signal,
      onProgress: (chunks) => chunks >= 300 && stop.abort(new Error('killed')),
    });
    await expect(first).rejects.toThrow('killed');
    const done = await sealed();
    expect(done % 256).toBe(0);
    expect(done).toBeGreaterThan(0);

    const spy = counting();
    const body = await build(LARGE, { embedder: spy });
    expect(spy.texts).toBe(body.chunks - done);
    expect(await sealed()).toBe(body.chunks);
    expect(await verifyIndex(milvus, body, PARAMETERS.dense)).toBe(true);

    const again = counting();
    expect(await build(LARGE, { embedder: again })).toEqual(body);
    expect(again.texts).toBe(0);
  });

  test('survives the death of an embedder process: its batch is done again', async () => {
    let killed: number | null = null;
    const body = await build('orphaned', {
      onProgress: (chunks) => {
        if (killed === null && chunks > 50) {
          killed = -1;
          void embedderChildren().then(([pid]) => {
            killed = pid as number;
            process.kill(killed, 'SIGKILL');
          });
        }
      },
    });
    expect(killed).toBeGreaterThan(0);
    expect(await verifyIndex(milvus, body, PARAMETERS.dense)).toBe(true);
  });

  test('made otherwise is refused by its fingerprint', async () => {
    const body = await build('stamped');
    const other = { ...PARAMETERS, chunk: { tokens: 41, overlap: 8 } };
    await expect(build('stamped', { parameters: other })).rejects.toThrow(/INDEX_FINGERPRINT/);
    const fp32 = await openEmbedder({ folder: MODEL, model: 'all-minilm-l6-v2', precision: 'fp32' });
    await expect(
      openWorld({ pool, milvus, embedder: fp32, corpus: small, index: body, fusion: FUSION }),
    ).rejects.toThrow(/INDEX_FINGERPRINT/);
    await fp32.close();
  });

  test('does not verify with a row missing or the collection gone, and is made again', async () => {
    const body = await build('damaged');
    await milvus.delete({ collection_name: body.collection, filter: 'ord == 0 && url == "https://rivers.example/7"' });
    expect(await verifyIndex(milvus, body, PARAMETERS.dense)).toBe(false);
    await expect(build('damaged')).rejects.toThrow(/INDEX_INCOMPLETE/);
    expect(await verifyIndex(milvus, body, PARAMETERS.dense)).toBe(false);
    expect(await build('damaged')).toEqual(body);
  });

  describe('and its world', () => {
    let world: World;
    let body: IndexBody;
    beforeAll(async () => {
      body = await build(LARGE);
      world = await openWorld({ pool, milvus, embedder, corpus, index: body, fusion: FUSION });
    });

    const find = async (queries: string[], extra = {}) => world.search(queries, { limit: 5, ...extra });

    test.each(['bm25', 'fused'] as const)('%s finds the page with the words of the query', async (mode) => {
      const { results } = await find(['bridge in the town of Karsu42'], { mode });
      expect(results[0]).toMatchObject({ url: 'https://rivers.example/42', title: 'River Orvane42' });
      expect(results[0]?.snippet).toContain('Karsu42');
    });

    test('dense ranks by meaning: vectors are unit length, and a text is nearest to itself', async () => {
      const [a, b, c] = (await embedder.embed(
        [
          'A package that parses command line arguments.',
          'A module for parsing command-line options.',
          'It rained in Bergen all day.',
        ],
        { priority: 'query' },
      )) as [Float32Array, Float32Array, Float32Array];
      const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, value, i) => sum + value * (y[i] as number), 0);
      expect(dot(a, a)).toBeCloseTo(1, 4);
      expect(dot(a, b)).toBeGreaterThan(0.7);
      expect(dot(a, c)).toBeLessThan(0.2);
      expect((await find(['River Orvane42'], { mode: 'dense' })).results).toHaveLength(5);
    });

    test('several queries of one call give each page once, the first of each query first', async () => {
      const { results } = await find(['town of Karsu3', 'town of Karsu140', 'Karsu3']);
      expect(
        results
          .slice(0, 2)
          .map(({ url }) => url)
          .sort(),
      ).toEqual(['https://rivers.example/140', 'https://rivers.example/3']);
      expect(new Set(results.map(({ url }) => url)).size).toBe(results.length);
    });

    test('a denied page is neither found nor read, under no spelling, and is counted', async () => {
      const denyUrls = ['http://www.rivers.example/42/'];
      const { results, denied } = await find(['Karsu42'], { denyUrls });
      expect(results.map(({ url }) => url)).not.toContain('https://rivers.example/42');
      expect(denied).toBe(1);
      const [visited] = await world.visit(['https://rivers.example/42'], '', { maxTokens: 50, countTokens, denyUrls });
      expect(visited).toMatchObject({ status: 'denied' });
    });

    test('a visit reads pages of the corpus within the budget, and nothing else', async () => {
      const urls = [
        'https://rivers.example/1',
        'https://rivers.example/2',
        'http://127.0.0.1:1/',
        'https://rivers.example/1',
      ];
      const pages = await world.visit(urls, 'Which mill?', { maxTokens: 60, countTokens });
      expect(pages.map(({ status }) => status)).toEqual(['ok', 'ok', 'not_found']);
      const texts = pages.map((page) => (page.status === 'ok' ? page.text : ''));
      expect(countTokens(texts.join('\n'))).toBeLessThanOrEqual(62);
      expect(texts[0]).toContain('Orvane1 ');
    });

    test('sixteen searches at once are answered, each its own', async () => {
      const asked = Array.from({ length: 16 }, (_, i) => i * 9);
      const answers = await Promise.all(asked.map((i) => find([`town of Karsu${i}`], { mode: 'bm25' })));
      expect(answers.map(({ results }) => results[0]?.url)).toEqual(asked.map((i) => `https://rivers.example/${i}`));
    });

    test('an outage is an exception, never an empty answer', async () => {
      const nobody = connectMilvus({ address: '127.0.0.1:9' });
      await expect(openWorld({ pool, milvus: nobody, embedder, corpus, index: body, fusion: FUSION })).rejects.toThrow(
        /WORLD_UNAVAILABLE/,
      );
      await nobody.closeConnection();
      const gone = new pg.Pool({ connectionString: 'postgresql://exp@127.0.0.1:9/exp' });
      const blind = await openWorld({ pool: gone, milvus, embedder, corpus, index: body, fusion: FUSION });
      await expect(blind.visit(['https://rivers.example/1'], '', { maxTokens: 9, countTokens })).rejects.toThrow(
        /WORLD_UNAVAILABLE/,
      );
      await gone.end();
    });
  });
});

/** Children of this process that run the embedder. */
async function embedderChildren(): Promise<number[]> {
  const pids: number[] = [];
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const [stat, command] = await Promise.all(
      ['stat', 'cmdline'].map((file) => readFile(`/proc/${entry}/${file}`, 'utf8').catch(() => '')),
    );
    const parent = Number(stat?.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
    if (parent === process.pid && command?.includes('embedder-child')) pids.push(Number(entry));
  }
  return pids;
}
