import { readFile } from 'node:fs/promises';
import { ExpError } from '../../schemas/errors.ts';
import type { SearchOptions, World } from '../environment.ts';
import { ndcgAt, type Relevance, recallAt } from './retrieval-metrics.ts';

export interface JudgedQuery {
  id: string;
  text: string;
  relevant: Relevance;
}

export interface ModeResult {
  mode: NonNullable<SearchOptions['mode']>;
  queries: number;
  ndcg_at_10: number;
  recall_at_5: number;
  recall_at_10: number;
  recall_at_100: number;
  ms_per_query: number;
}

const MODES = ['bm25', 'dense', 'fused'] as const;
const DEPTH = 100;

/**
 * Queries with their relevant pages. `queries` is BEIR's (`_id`, `text`) or a file of questions (`id`, `question`,
 * `gold_doc_ids`), which needs no `qrels` (BEIR's TSV: query, page, grade). Ids of pages become `doc:<id>`, as in the
 * corpus, unless they are URLs. Queries without a relevant page are left out.
 */
export async function readJudgedQueries(queriesPath: string, qrelsPath: string | null): Promise<JudgedQuery[]> {
  const judged = qrelsPath === null ? null : await readQrels(qrelsPath);
  const queries: JudgedQuery[] = [];
  const lines = (await readFile(queriesPath, 'utf8')).split('\n');
  for (const [index, line] of lines.entries()) {
    if (line.trim() === '') continue;
    const row = JSON.parse(line) as {
      _id?: unknown;
      id?: unknown;
      text?: unknown;
      question?: unknown;
      gold_doc_ids?: unknown;
    };
    const id = String(row._id ?? row.id ?? index + 1);
    const text = row.text ?? row.question;
    if (typeof text !== 'string') throw new ExpError('BAD_ROWS', `${queriesPath}:${index + 1}`, 'no text or question');
    const gold = Array.isArray(row.gold_doc_ids) ? row.gold_doc_ids.map(String) : [];
    const relevant = judged?.get(id) ?? new Map(gold.map((page) => [pageUrl(page), 1]));
    if (relevant.size > 0) queries.push({ id, text, relevant });
  }
  if (queries.length === 0)
    throw new ExpError('EMPTY', queriesPath, 'no query has a relevant page; is --qrels missing?');
  return queries;
}

/** Each way of ranking over all queries, one query after the other. */
export async function evaluateWorld(
  world: World,
  queries: readonly JudgedQuery[],
  onMode: (mode: string) => void,
): Promise<ModeResult[]> {
  const results: ModeResult[] = [];
  for (const mode of MODES) {
    onMode(mode);
    await world.search([(queries[0] as JudgedQuery).text], { limit: DEPTH, mode }); // first use starts the embedder
    const startedAt = performance.now();
    const rankings: string[][] = [];
    for (const { text } of queries) {
      rankings.push((await world.search([text], { limit: DEPTH, mode })).results.map(({ url }) => url));
    }
    const ms = (performance.now() - startedAt) / queries.length;
    const mean = (metric: (ranked: string[], relevant: Relevance) => number): number =>
      queries.reduce((sum, { relevant }, i) => sum + metric(rankings[i] as string[], relevant), 0) / queries.length;
    results.push({
      mode,
      queries: queries.length,
      ndcg_at_10: mean((ranked, relevant) => ndcgAt(ranked, relevant, 10)),
      recall_at_5: mean((ranked, relevant) => recallAt(ranked, relevant, 5)),
      recall_at_10: mean((ranked, relevant) => recallAt(ranked, relevant, 10)),
      recall_at_100: mean((ranked, relevant) => recallAt(ranked, relevant, 100)),
      ms_per_query: ms,
    });
  }
  return results;
}

async function readQrels(path: string): Promise<Map<string, Map<string, number>>> {
  const judged = new Map<string, Map<string, number>>();
  const lines = (await readFile(path, 'utf8')).split('\n');
  for (const [index, line] of lines.entries()) {
    const fields = line.trim().split(/\s+/);
    // TREC's own format has an unused second column.
    const [query, page, grade] = fields.length === 4 ? [fields[0], fields[2], fields[3]] : fields;
    if (!query || (index === 0 && !Number.isFinite(Number(grade)))) continue;
    if (page === undefined || !Number.isFinite(Number(grade)))
      throw new ExpError('BAD_ROWS', `${path}:${index + 1}`, 'not "query page grade"');
    const ofQuery = judged.get(query) ?? new Map<string, number>();
    judged.set(query, ofQuery);
    if (Number(grade) > 0) ofQuery.set(pageUrl(page), Number(grade));
  }
  return judged;
}

function pageUrl(id: string): string {
  return /^[a-z][a-z0-9+.-]*:/i.test(id) ? id : `doc:${id}`;
}
