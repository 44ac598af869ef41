import { createHash } from 'node:crypto';
import { pipeline } from 'node:stream/promises';
import type { Pool, PoolClient } from 'pg';
import { from as copyFrom } from 'pg-copy-streams';
import { contentKey } from '../../schemas/canonical.ts';
import type { SourcePage } from '../environment.ts';
import { bandKeys, jaccard, shingles } from './near-duplicates.ts';

export interface StoredPage {
  url: string;
  title: string;
  text: string;
}

/** A page on its way in, with where it comes from and what it adds to the limit. */
export interface IncomingPage extends SourcePage {
  source: string;
  chunks: number;
}

export interface WriteCounts {
  kept: number;
  chunks: number;
  exact_duplicates: number;
  near_duplicates: number;
  /** The same URL again with another text: the first stays. */
  repeated_urls: number;
}

const FETCH_ROWS = 500;

/** Names a page by all that a reader can learn from it. */
export function pageHash({ title, text, facts }: SourcePage): string {
  return contentKey({ title, text, ...(facts && { facts }) });
}

/**
 * Writes pages of one corpus, batch by batch, each batch one transaction. Runs again with the same result: a page
 * already there counts as kept, and every decision depends only on the pages before it.
 */
export class PageWriter {
  readonly counts: WriteCounts = { kept: 0, chunks: 0, exact_duplicates: 0, near_duplicates: 0, repeated_urls: 0 };
  readonly #client: PoolClient;
  readonly #corpusKey: string;
  readonly #threshold: number | null;
  /** Whether one more page may be kept; asked in order, and after the first no the rest of a batch is left. */
  readonly #mayKeep: (page: IncomingPage, counts: WriteCounts) => boolean;
  #isFull = false;

  constructor(
    client: PoolClient,
    corpusKey: string,
    threshold: number | null,
    mayKeep: (page: IncomingPage, counts: WriteCounts) => boolean,
  ) {
    this.#client = client;
    this.#corpusKey = corpusKey;
    this.#threshold = threshold;
    this.#mayKeep = mayKeep;
  }

  get isFull(): boolean {
    return this.#isFull;
  }

  async write(pages: readonly IncomingPage[]): Promise<void> {
    if (this.#isFull || pages.length === 0) return;
    const hashed = pages.map((page) => ({ ...page, hash: pageHash(page) }));
    const known = await this.#known(hashed);
    const near = this.#threshold === null ? null : new NearDuplicates(this.#client, this.#corpusKey, this.#threshold);
    const fresh: HashedPage[] = [];

    await near?.prepare(hashed.filter(({ url }) => !known.hashOfUrl.has(url)));
    for (const page of hashed) {
      const verdict = this.#judge(page, known, near);
      if (verdict !== 'kept') {
        this.counts[verdict] += 1;
        continue;
      }
      if (!this.#mayKeep(page, this.counts)) {
        this.#isFull = true;
        break;
      }
      this.counts.kept += 1;
      this.counts.chunks += page.chunks;
      if (known.hashOfUrl.has(page.url)) continue;
      known.hashOfUrl.set(page.url, page.hash);
      known.urlOfHash.set(page.hash, page.url);
      near?.add(page);
      fresh.push(page);
    }
    await this.#store(fresh, near);
  }

  #judge(
    page: HashedPage,
    known: KnownPages,
    near: NearDuplicates | null,
  ): 'kept' | 'exact_duplicates' | 'near_duplicates' | 'repeated_urls' {
    const there = known.hashOfUrl.get(page.url);
    if (there !== undefined) return there === page.hash && known.stored.has(page.url) ? 'kept' : 'repeated_urls';
    if (known.urlOfHash.has(page.hash)) return 'exact_duplicates';
    return near?.isNearDuplicate(page) ? 'near_duplicates' : 'kept';
  }

  async #known(pages: readonly HashedPage[]): Promise<KnownPages> {
    const { rows } = await this.#client.query<{ url: string; hash: string }>(
      'select url, hash from corpus_pages where corpus_key = $1 and (url = any($2) or hash = any($3))',
      [this.#corpusKey, pages.map(({ url }) => url), pages.map(({ hash }) => hash)],
    );
    return {
      stored: new Set(rows.map(({ url }) => url)),
      hashOfUrl: new Map(rows.map(({ url, hash }) => [url, hash])),
      urlOfHash: new Map(rows.map(({ url, hash }) => [hash, url])),
    };
  }

  async #store(pages: readonly HashedPage[], near: NearDuplicates | null): Promise<void> {
    if (pages.length === 0) return;
    const client = this.#client;
    await client.query('begin');
    try {
      await client.query(`create temp table if not exists incoming_pages
        (url text, hash text, title text, text text, facts jsonb, source text) on commit delete rows`);
      await copyRows(
        client,
        'incoming_pages (url, hash, title, text, facts, source)',
        pages.map(({ url, hash, title, text, facts, source }) => [
          url,
          hash,
          title,
          text,
          facts ? JSON.stringify(facts) : null,
          source,
        ]),
      );
      await client.query(`insert into pages (hash, title, text, facts)
        select hash, title, text, facts from incoming_pages order by hash on conflict do nothing`);
      await client.query(
        `insert into corpus_pages (corpus_key, url, hash, source)
         select $1, url, hash, source from incoming_pages order by url on conflict do nothing`,
        [this.#corpusKey],
      );
      await near?.store(pages);
      await client.query('commit');
    } catch (error) {
      await client.query('rollback').catch(() => undefined);
      throw error;
    }
  }
}

type HashedPage = IncomingPage & { hash: string };

interface KnownPages {
  /** URLs that an earlier batch (or attempt) stored. */
  stored: Set<string>;
  hashOfUrl: Map<string, string>;
  urlOfHash: Map<string, string>;
}

/** Candidates by MinHash bands, kept in PostgreSQL so that memory does not grow with the corpus; verified exactly. */
class NearDuplicates {
  readonly #client: PoolClient;
  readonly #corpusKey: string;
  readonly #threshold: number;
  readonly #sets = new Map<string, Set<number>>();
  readonly #bands = new Map<string, bigint[]>();
  readonly #owners = new Map<bigint, Set<string>>();

  constructor(client: PoolClient, corpusKey: string, threshold: number) {
    this.#client = client;
    this.#corpusKey = corpusKey;
    this.#threshold = threshold;
  }

  /** Compute the bands of a batch and load the earlier pages that share one. */
  async prepare(pages: readonly HashedPage[]): Promise<void> {
    for (const page of pages) {
      const set = shingles(`${page.title}\n${page.text}`);
      this.#sets.set(page.hash, set);
      this.#bands.set(page.hash, bandKeys(set, this.#threshold));
    }
    const bands = [...new Set([...this.#bands.values()].flat())].map(String);
    const { rows } = await this.#client.query<{ band: string; hash: string }>(
      'select band, hash from page_bands where corpus_key = $1 and band = any($2::bigint[])',
      [this.#corpusKey, bands],
    );
    for (const { band, hash } of rows) this.#own(BigInt(band), hash);
    const missing = [...new Set(rows.map(({ hash }) => hash))].filter((hash) => !this.#sets.has(hash));
    const texts = await this.#client.query<StoredPage & { hash: string }>(
      'select hash, title, text from pages where hash = any($1)',
      [missing],
    );
    for (const { hash, title, text } of texts.rows) this.#sets.set(hash, shingles(`${title}\n${text}`));
  }

  isNearDuplicate({ hash }: HashedPage): boolean {
    const set = this.#sets.get(hash) as Set<number>;
    const candidates = new Set((this.#bands.get(hash) ?? []).flatMap((band) => [...(this.#owners.get(band) ?? [])]));
    for (const candidate of candidates) {
      const other = this.#sets.get(candidate);
      if (candidate !== hash && other && jaccard(set, other) >= this.#threshold) return true;
    }
    return false;
  }

  add({ hash }: HashedPage): void {
    for (const band of this.#bands.get(hash) ?? []) this.#own(band, hash);
  }

  async store(pages: readonly HashedPage[]): Promise<void> {
    await this.#client.query(
      `create temp table if not exists incoming_bands (band bigint, hash text) on commit delete rows`,
    );
    const rows = pages.flatMap(({ hash }) => (this.#bands.get(hash) ?? []).map((band) => [String(band), hash]));
    await copyRows(this.#client, 'incoming_bands (band, hash)', rows);
    await this.#client.query(
      'insert into page_bands (corpus_key, band, hash) select $1, band, hash from incoming_bands on conflict do nothing',
      [this.#corpusKey],
    );
  }

  #own(band: bigint, hash: string): void {
    const owners = this.#owners.get(band) ?? new Set();
    this.#owners.set(band, owners.add(hash));
  }
}

/** COPY rows in text format; a null is a null. */
export async function copyRows(
  client: PoolClient,
  target: string,
  rows: readonly (readonly (string | null)[])[],
): Promise<void> {
  const stream = client.query(copyFrom(`copy ${target} from stdin`));
  await pipeline(
    rows.map((row) => `${row.map(copyField).join('\t')}\n`),
    stream,
  );
}

const ESCAPES: Record<string, string> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };

function copyField(value: string | null): string {
  return value === null ? '\\N' : value.replace(/[\\\n\r\t]/g, (character) => ESCAPES[character] as string);
}

/** Rows of a query, a few at a time, through a cursor in its own transaction. */
export async function* cursorRows<Row extends object>(
  pool: Pool,
  sql: string,
  values: readonly unknown[],
): AsyncGenerator<Row> {
  const client = await pool.connect();
  let failed: unknown;
  try {
    await client.query('begin read only');
    await client.query(`declare pages_cursor no scroll cursor for ${sql}`, [...values]);
    for (;;) {
      const { rows } = await client.query<Row>(`fetch ${FETCH_ROWS} from pages_cursor`);
      if (rows.length === 0) break;
      yield* rows;
    }
  } catch (error) {
    failed = error;
    throw error;
  } finally {
    await client.query('rollback').catch((error: unknown) => {
      failed = error;
    });
    client.release(failed instanceof Error ? failed : undefined);
  }
}

/**
 * All pages of a corpus in the database's own order of URLs, or those from a URL on. Each read is a short query along
 * the primary key: indexing takes hours, and a cursor would keep its snapshot all that time.
 */
export async function* readPages(pool: Pool, corpusKey: string, fromUrl = ''): AsyncGenerator<StoredPage> {
  for (let from = fromUrl, comparison = '>='; ; comparison = '>') {
    const { rows } = await pool.query<StoredPage>(
      `select corpus_pages.url, pages.title, pages.text from corpus_pages join pages using (hash)
       where corpus_key = $1 and url ${comparison} $2 order by url limit ${FETCH_ROWS}`,
      [corpusKey, from],
    );
    yield* rows;
    if (rows.length < FETCH_ROWS) return;
    from = rows.at(-1)?.url ?? from;
  }
}

/** Pages by URL; what is not in the corpus is not in the map. */
export async function fetchPages(
  pool: Pool,
  corpusKey: string,
  urls: readonly string[],
): Promise<Map<string, StoredPage>> {
  const { rows } = await pool.query<StoredPage>({
    name: 'exp-fetch-pages',
    text: `select corpus_pages.url, pages.title, pages.text from corpus_pages join pages using (hash)
           where corpus_key = $1 and url = any($2)`,
    values: [corpusKey, urls],
  });
  return new Map(rows.map((page) => [page.url, page]));
}

export interface CorpusState {
  pages: number;
  bytes: number;
  bySource: Record<string, number>;
  /** SHA-256 over (url, page hash) in URL order. */
  fingerprint: string;
}

/** What of a corpus is in PostgreSQL now. */
export async function corpusState(pool: Pool, corpusKey: string): Promise<CorpusState> {
  const hash = createHash('sha256');
  const bySource: Record<string, number> = {};
  let pages = 0;
  let bytes = 0;
  const rows = cursorRows<{ url: string; hash: string; source: string; bytes: number }>(
    pool,
    `select url, hash, source, octet_length(pages.text) as bytes from corpus_pages join pages using (hash)
     where corpus_key = $1 order by url collate "C"`,
    [corpusKey],
  );
  for await (const row of rows) {
    hash.update(`${row.url}\t${row.hash}\n`);
    pages += 1;
    bytes += row.bytes;
    bySource[row.source] = (bySource[row.source] ?? 0) + 1;
  }
  return { pages, bytes, bySource, fingerprint: hash.digest('hex') };
}

/** Whether the pages a manifest promises are there, unchanged. */
export async function verifyPages(
  pool: Pool,
  body: { corpus_key: string; pages: number; fingerprint: string },
): Promise<boolean> {
  const { rows } = await pool.query<{ count: string }>('select count(*) from corpus_pages where corpus_key = $1', [
    body.corpus_key,
  ]);
  if (Number(rows[0]?.count) !== body.pages) return false;
  return (await corpusState(pool, body.corpus_key)).fingerprint === body.fingerprint;
}
