/** Grade of each relevant page of one query, by URL; what is absent is not relevant. */
export type Relevance = ReadonlyMap<string, number>;

/**
 * Normalised discounted cumulative gain of the first `k` (Järvelin and Kekäläinen 2002), with the grade itself as gain
 * and log2(rank + 1) as discount: what trec_eval and BEIR report.
 */
export function ndcgAt(ranked: readonly string[], relevant: Relevance, k: number): number {
  const ideal = [...relevant.values()].sort((a, b) => b - a);
  const best = discountedGain(ideal.slice(0, k));
  return best === 0 ? 0 : discountedGain(ranked.slice(0, k).map((url) => relevant.get(url) ?? 0)) / best;
}

/** Share of the relevant pages that are among the first `k`. */
export function recallAt(ranked: readonly string[], relevant: Relevance, k: number): number {
  const wanted = [...relevant].filter(([, grade]) => grade > 0).map(([url]) => url);
  if (wanted.length === 0) return 0;
  const found = new Set(ranked.slice(0, k));
  return wanted.filter((url) => found.has(url)).length / wanted.length;
}

function discountedGain(grades: readonly number[]): number {
  return grades.reduce((sum, grade, index) => sum + grade / Math.log2(index + 2), 0);
}
