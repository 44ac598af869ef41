import type { Pool, PoolClient } from 'pg';
import type { CorpusBody } from '../../schemas/artifact.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { CorpusParameters, CorpusSource } from '../../schemas/node-parameters.ts';
import { PageSelection, pageOrder } from './page-selection.ts';
import { copyRows, corpusState, type IncomingPage, PageWriter, type WriteCounts } from './pages.ts';
import { openSource } from './sources/index.ts';
import { RowReport } from './sources/row-report.ts';

export interface LoadCorpusOptions {
  pool: Pool;
  corpusKey: string;
  sources: Record<string, CorpusSource>;
  limit: CorpusParameters['limit'];
  nearDuplicates: CorpusParameters['near_duplicates'];
  /** Source name → file, folder, glob or checkout. */
  paths: Record<string, string>;
  /** Source name → records it must have. */
  expectRecords?: Record<string, number> | undefined;
  /** Chunks of a page by the index's chunker; needed for a limit of chunks. */
  countChunks: ((text: string) => number) | null;
  signal: AbortSignal;
  /** Called as pages move; must not throw. */
  onProgress(pages: number, detail: string): void;
}

const BATCH_PAGES = 200;
const BATCH_CHARACTERS = 4 * 2 ** 20;
// Candidates beyond the limit, for those that turn out to be duplicates.
const SLACK = 1.5;

/**
 * Bring the pages of all sources into PostgreSQL under a corpus key, and say what is there. Runs again after a crash
 * with the same result; memory holds one batch, and under a limit the order keys of the pages taken.
 */
export async function loadCorpus(options: LoadCorpusOptions): Promise<CorpusBody> {
  const { pool, corpusKey, sources, limit } = options;
  const client = await pool.connect();
  let failed: Error | undefined;
  try {
    const isLimited = limit.pages !== null || limit.chunks !== null;
    const { counts, seen, bad } = isLimited ? await loadLimited(client, options) : await loadAll(client, options);
    await client.query('delete from page_bands where corpus_key = $1', [corpusKey]);
    const state = await corpusState(pool, corpusKey);
    return {
      corpus_key: corpusKey,
      pages: state.pages,
      bytes: state.bytes,
      dropped: {
        exact_duplicates: counts.exact_duplicates,
        near_duplicates: counts.near_duplicates,
        repeated_urls: counts.repeated_urls,
        over_limit: seen - counts.kept - counts.exact_duplicates - counts.near_duplicates - counts.repeated_urls,
        bad_rows: bad,
      },
      sources: sortedSources(sources).map(([name, { kind, licence, provenance }]) => ({
        name,
        kind,
        licence,
        provenance,
        pages: state.bySource[name] ?? 0,
      })),
      fingerprint: state.fingerprint,
    };
  } catch (error) {
    failed = error as Error;
    throw error;
  } finally {
    client.release(failed ?? true); // closed, with its temporary tables
  }
}

interface Loaded {
  counts: WriteCounts;
  /** Pages the sources yielded. */
  seen: number;
  bad: number;
}

/** Names sort the sources: canonical JSON forgets in which order a spec wrote them. */
function sortedSources(sources: Record<string, CorpusSource>): [string, CorpusSource][] {
  return Object.entries(sources).sort(([a], [b]) => (a < b ? -1 : 1));
}

async function loadAll(client: PoolClient, options: LoadCorpusOptions): Promise<Loaded> {
  const threshold = options.nearDuplicates?.threshold ?? null;
  const writer = new PageWriter(client, options.corpusKey, threshold, () => true);
  const totals = { seen: 0, bad: 0 };
  const pages = pagesOf(options, totals);
  for await (const batch of inBatches(pages)) {
    options.signal.throwIfAborted();
    await writer.write(batch.map((page) => ({ ...page, chunks: 0 })));
    options.onProgress(writer.counts.kept, 'pages stored');
  }
  return { counts: writer.counts, ...totals };
}

/**
 * Pages by hash order until the limit is reached. Two passes over the sources: the first finds which pages come first
 * (with some to spare for duplicates), the second stores them. When the spare did not suffice, again with more.
 */
async function loadLimited(client: PoolClient, options: LoadCorpusOptions): Promise<Loaded> {
  for (let slack = SLACK; ; slack *= 2) {
    const totals = { seen: 0, bad: 0 };
    const selection = await selectPages(options, slack, totals);
    await stagePages(client, options, selection.taken);
    const writer = new PageWriter(
      client,
      options.corpusKey,
      options.nearDuplicates?.threshold ?? null,
      (page, counts) => isWithin(options.limit, page, counts),
    );
    for await (const batch of stagedBatches(client)) {
      options.signal.throwIfAborted();
      await writer.write(batch);
      options.onProgress(writer.counts.kept, 'pages stored');
      if (writer.isFull) break;
    }
    if (writer.isFull || selection.isComplete) return { counts: writer.counts, ...totals };
  }
}

/** A first page longer than the whole limit is kept: a corpus is never empty. */
function isWithin(limit: CorpusParameters['limit'], page: IncomingPage, counts: WriteCounts): boolean {
  if (limit.pages !== null && counts.kept >= limit.pages) return false;
  return limit.chunks === null || counts.kept === 0 || counts.chunks + page.chunks <= limit.chunks;
}

async function selectPages(options: LoadCorpusOptions, slack: number, totals: { seen: number; bad: number }) {
  const { limit, countChunks } = options;
  const weigh = limit.chunks === null ? () => 1 : countChunks;
  if (!weigh) throw new ExpError('SPEC', 'corpus.limit.chunks', 'counting chunks needs the chunker of the index');
  const selection = new PageSelection(Math.ceil((limit.chunks ?? limit.pages ?? 0) * slack) + 1);
  for await (const { url, text } of pagesOf(options, totals)) {
    const order = pageOrder(url);
    if (selection.wants(order)) selection.add({ order, weight: weigh(text) });
    if (totals.seen % 50 === 0) {
      options.signal.throwIfAborted();
      options.onProgress(totals.seen, 'pages read');
    }
  }
  return selection.finish();
}

/** Put the taken pages into a temporary table, where they can be read in order. */
async function stagePages(
  client: PoolClient,
  options: LoadCorpusOptions,
  taken: ReadonlyMap<string, number>,
): Promise<void> {
  await client.query('drop table if exists staged_pages');
  await client.query(`create temp table staged_pages
    (page_order text primary key, url text, title text, text text, facts jsonb, source text, chunks integer)`);
  // Read once and dropped: compressing it would cost more than it saves.
  await client.query('alter table staged_pages alter column text set storage external');
  const staged = new Set<string>();
  for await (const batch of inBatches(pagesOf(options, { seen: 0, bad: 0 }))) {
    options.signal.throwIfAborted();
    const rows: (string | null)[][] = [];
    for (const { url, title, text, facts, source } of batch) {
      const order = pageOrder(url);
      const chunks = taken.get(order);
      if (chunks === undefined || staged.has(order)) continue;
      staged.add(order);
      rows.push([order, url, title, text, facts ? JSON.stringify(facts) : null, source, String(chunks)]);
    }
    await copyRows(client, 'staged_pages (page_order, url, title, text, facts, source, chunks)', rows);
    options.onProgress(staged.size, 'pages taken');
  }
}

async function* stagedBatches(client: PoolClient): AsyncGenerator<IncomingPage[]> {
  let after = '';
  for (;;) {
    const { rows } = await client.query<IncomingPage & { page_order: string; facts: IncomingPage['facts'] | null }>(
      `select page_order, url, title, text, facts, source, chunks from staged_pages
       where page_order > $1 order by page_order limit ${BATCH_PAGES}`,
      [after],
    );
    if (rows.length === 0) return;
    after = rows.at(-1)?.page_order ?? '';
    yield rows.map(({ page_order: _order, facts, ...page }) => ({ ...page, ...(facts && { facts }) }));
  }
}

/** Every page of every source, each source checked when it ends. */
async function* pagesOf(
  options: LoadCorpusOptions,
  totals: { seen: number; bad: number },
): AsyncGenerator<Omit<IncomingPage, 'chunks'>> {
  for (const [name, spec] of sortedSources(options.sources)) {
    const path = options.paths[name];
    if (path === undefined) throw new ExpError('REF', `corpus.sources.${name}`, 'the plan has no path for it');
    const taken = 'limit' in spec && spec.limit !== null ? await firstOfSource(name, spec, path, spec.limit) : null;
    const report = new RowReport(`corpus.sources.${name}`);
    for await (const page of openSource(name, spec, path, report)) {
      if (taken && !taken.has(pageOrder(page.url))) continue;
      totals.seen += 1;
      yield { ...page, source: name };
    }
    report.check(options.expectRecords?.[name]);
    totals.bad += report.bad;
  }
}

async function firstOfSource(
  name: string,
  spec: CorpusSource,
  path: string,
  limit: number,
): Promise<ReadonlyMap<string, number>> {
  const selection = new PageSelection(limit);
  for await (const { url } of openSource(name, spec, path, new RowReport(name))) {
    const order = pageOrder(url);
    if (selection.wants(order)) selection.add({ order, weight: 1 });
  }
  return selection.finish().taken;
}

async function* inBatches<P extends { text: string }>(pages: AsyncIterable<P>): AsyncGenerator<P[]> {
  let batch: P[] = [];
  let characters = 0;
  for await (const page of pages) {
    batch.push(page);
    characters += page.text.length;
    if (batch.length >= BATCH_PAGES || characters >= BATCH_CHARACTERS) {
      yield batch;
      batch = [];
      characters = 0;
    }
  }
  if (batch.length > 0) yield batch;
}
