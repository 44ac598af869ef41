/** Estimates over questions, each with how many of its samples were right. Pure. */
import { seededRandom } from '../tasks/seeded.ts';

export interface Estimate {
  value: number;
  /** Ends of the 95 % interval. */
  low: number;
  high: number;
}

/** Samples of one question that count, and how many of them are right. */
export interface Tally {
  samples: number;
  correct: number;
}

const RESAMPLES = 10_000;
const TAIL = 0.025;

/** Mean accuracy over the samples of one question. */
export function averageOf({ samples, correct }: Tally): number {
  return correct / samples;
}

/**
 * Probability that at least one of k samples is right, estimated without bias from n ≥ k samples:
 * 1 − C(n−c, k) / C(n, k) (arXiv:2107.03374, equation 1), as a product so that nothing overflows.
 */
export function passAtK({ samples, correct }: Tally, k: number): number {
  if (k < 1 || k > samples) throw new RangeError(`pass@${k} needs at least ${k} samples, there are ${samples}`);
  if (samples - correct < k) return 1;
  let allWrong = 1;
  for (let drawn = 0; drawn < k; drawn += 1) allWrong *= (samples - correct - drawn) / (samples - drawn);
  return 1 - allWrong;
}

/**
 * Mean over questions with its 95 % interval by the percentile bootstrap: questions, not samples, are drawn again,
 * because samples of one question are not independent. The same name gives the same interval.
 */
export function bootstrapMean(values: readonly number[], name: string): Estimate {
  if (values.length === 0) return { value: 0, low: 0, high: 0 };
  const random = seededRandom(`bootstrap/${name}`);
  const means = new Float64Array(RESAMPLES);
  for (let resample = 0; resample < RESAMPLES; resample += 1) {
    let sum = 0;
    for (let draw = 0; draw < values.length; draw += 1) sum += values[Math.floor(random() * values.length)] as number;
    means[resample] = sum / values.length;
  }
  means.sort();
  return { value: meanOf(values), low: quantile(means, TAIL), high: quantile(means, 1 - TAIL) };
}

export function meanOf(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Linear interpolation between order statistics, as numpy's default does. */
export function quantile(sorted: ArrayLike<number>, share: number): number {
  const position = share * (sorted.length - 1);
  const below = Math.floor(position);
  const low = sorted[below] as number;
  const high = sorted[Math.min(below + 1, sorted.length - 1)] as number;
  return low + (high - low) * (position - below);
}

export interface Bucket {
  from: number;
  /** Exclusive; null for the last. */
  to: number | null;
  count: number;
}

/** How many values fall between neighbouring edges. */
export function histogram(values: readonly number[], edges: readonly number[]): Bucket[] {
  const starts = [0, ...edges];
  return starts.map((from, index) => {
    const to = starts[index + 1] ?? null;
    return { from, to, count: values.filter((value) => value >= from && (to === null || value < to)).length };
  });
}
