/** Two policies on the same questions: how much better one is, and how sure that is. Pure. */
import { seededRandom } from '../tasks/seeded.ts';
import type { QuestionResult } from './score-benchmark.ts';
import { averageOf, bootstrapMean, type Estimate, meanOf, passAtK } from './statistics.ts';

/** Value of each question, by task id. */
export type QuestionValues = ReadonlyMap<string, number>;

export interface PairedComparison {
  /** Asked of both; others are left out. */
  questions: number;
  /** Mean of the differences, with its interval by bootstrap over questions. */
  difference: Estimate;
  /** Two-sided, of the sign-flip permutation test on the differences. */
  p_value: number;
  wins: number;
  losses: number;
  ties: number;
}

/** Up to so many differences all sign flips are tried; beyond, as many random ones as below. */
const EXACT_LIMIT = 16;
const RANDOM_FLIPS = 20_000;
/** Sums of the same numbers in another order. */
const ROUNDING = 1e-12;

/** `avg_at_2`, `pass_at_2`: the value of one question; null when it has too few samples. */
export function questionValue(metric: string, { samples, correct }: QuestionResult): number | null {
  const match = /^(avg|pass)_at_(\d+)$/.exec(metric);
  if (!match) throw new RangeError(`no metric ${metric}`);
  const k = Number(match[2]);
  if (samples === 0) return null;
  if (match[1] === 'avg') return averageOf({ samples, correct });
  return samples < k ? null : passAtK({ samples, correct }, k);
}

/** Seeds of one arm as one: of each question the mean over seeds, so a question stays one observation. */
export function poolSeeds(seeds: readonly QuestionValues[]): QuestionValues {
  const ids = new Set(seeds.flatMap((values) => [...values.keys()]));
  return new Map(
    [...ids].map((id) => [id, meanOf(seeds.map((values) => values.get(id)).filter((value) => value !== undefined))]),
  );
}

/** `policy` minus `control`, question by question. */
export function comparePaired(control: QuestionValues, policy: QuestionValues, name: string): PairedComparison {
  const differences = [...control]
    .filter(([id]) => policy.has(id))
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([id, value]) => (policy.get(id) as number) - value);
  return {
    questions: differences.length,
    difference: bootstrapMean(differences, name),
    p_value: signFlipTest(differences, name),
    wins: differences.filter((difference) => difference > 0).length,
    losses: differences.filter((difference) => difference < 0).length,
    ties: differences.filter((difference) => difference === 0).length,
  };
}

/** Share of sign flips of the differences whose sum is as far from 0 as the one seen. */
export function signFlipTest(differences: readonly number[], name: string): number {
  const moved = differences.filter((difference) => difference !== 0);
  if (moved.length === 0) return 1;
  const seen = Math.abs(moved.reduce((sum, difference) => sum + difference, 0)) - ROUNDING;
  const isAsFar = (isFlipped: (at: number) => boolean): boolean =>
    Math.abs(moved.reduce((sum, difference, at) => sum + (isFlipped(at) ? -difference : difference), 0)) >= seen;
  let asFar = 0;
  if (moved.length <= EXACT_LIMIT) {
    const flips = 2 ** moved.length;
    for (let flip = 0; flip < flips; flip += 1) if (isAsFar((at) => ((flip >> at) & 1) === 1)) asFar += 1;
    return asFar / flips;
  }
  const random = seededRandom(`sign flips/${name}`);
  for (let flip = 0; flip < RANDOM_FLIPS; flip += 1) if (isAsFar(() => random() < 0.5)) asFar += 1;
  return (asFar + 1) / (RANDOM_FLIPS + 1); // the flip that was seen is one of them
}
