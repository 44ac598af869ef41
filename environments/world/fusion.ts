import type { IndexParameters } from '../../schemas/node-parameters.ts';
import type { ChunkHit } from './index.ts';

export type Fusion = IndexParameters['fusion'];
export type DenseMetric = IndexParameters['dense']['metric'];

/** A page as a ranking sees it: its best chunk. */
export interface RankedPage {
  url: string;
  title: string;
  text: string;
  score: number;
}

/** Pages by their best chunk, in the order of a ranking of chunks. */
export function pagesOfHits(hits: readonly ChunkHit[]): RankedPage[] {
  const pages = new Map<string, RankedPage>();
  for (const { url, title, text, score } of hits) if (!pages.has(url)) pages.set(url, { url, title, text, score });
  return [...pages.values()];
}

/**
 * One ranking of pages from two. Reciprocal rank fusion (Cormack et al. 2009): sum of 1 / (k + rank). Weighted: sum of
 * scores brought to [0, 1] as Milvus's own weighted ranker does it. The chunk shown is that of the better-ranked side.
 */
export function fuse(
  dense: readonly RankedPage[],
  words: readonly RankedPage[],
  fusion: Fusion,
  metric: DenseMetric,
): RankedPage[] {
  const fused = new Map<string, RankedPage & { best: number }>();
  const add = (pages: readonly RankedPage[], scoreOf: (page: RankedPage, rank: number) => number): void => {
    pages.forEach((page, rank) => {
      const score = scoreOf(page, rank);
      const there = fused.get(page.url);
      if (!there) fused.set(page.url, { ...page, score, best: rank });
      else {
        there.score += score;
        if (rank < there.best) Object.assign(there, { best: rank, text: page.text });
      }
    });
  };
  if (fusion.kind === 'rrf') {
    add(words, (_page, rank) => 1 / (fusion.k + rank + 1));
    add(dense, (_page, rank) => 1 / (fusion.k + rank + 1));
  } else {
    add(words, ({ score }) => fusion.sparse * ((2 * Math.atan(score)) / Math.PI));
    add(dense, ({ score }) => fusion.dense * normaliseDense(score, metric));
  }
  return [...fused.values()].map(({ best: _best, ...page }) => page).sort(byScore);
}

/** Best score first; the URL decides between equals, so that a ranking is the same on every machine. */
export function byScore(a: RankedPage, b: RankedPage): number {
  return b.score - a.score || (a.url < b.url ? -1 : 1);
}

/** Rankings of several queries as one: a page counts by its best query, so each query brings its first pages in first. */
export function mergeQueries(rankings: readonly (readonly RankedPage[])[]): RankedPage[] {
  if (rankings.length === 1) return [...(rankings[0] ?? [])];
  const best = new Map<string, RankedPage>();
  for (const page of rankings.flat()) {
    const there = best.get(page.url);
    if (!there || page.score > there.score) best.set(page.url, page);
  }
  return [...best.values()].sort(byScore);
}

function normaliseDense(score: number, metric: DenseMetric): number {
  switch (metric) {
    case 'cosine':
      return (1 + score) / 2;
    case 'ip':
      return 0.5 + Math.atan(score) / Math.PI;
    case 'l2':
      return 1 - (2 * Math.atan(score)) / Math.PI;
    default:
      return metric satisfies never;
  }
}
