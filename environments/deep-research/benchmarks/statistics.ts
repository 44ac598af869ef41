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

/**
 * Pass rate of one task with its 95 % Jeffreys interval: the 2.5 % and 97.5 % quantiles of Beta(c + 1/2, n − c + 1/2),
 * with 0 and 1 as ends where nothing and everything passed (Brown, Cai, DasGupta 2001, section 3.1). A posterior does not
 * depend on when sampling stopped, so it holds for a task whose rollouts ended early too. Nothing sampled: [0, 1].
 */
export function jeffreysInterval({ samples, correct }: Tally): Estimate {
  if (samples === 0) return { value: 0, low: 0, high: 1 };
  const [a, b] = [correct + 0.5, samples - correct + 0.5];
  return {
    value: correct / samples,
    low: correct === 0 ? 0 : betaQuantile(TAIL, a, b),
    high: correct === samples ? 1 : betaQuantile(1 - TAIL, a, b),
  };
}

/** By bisection: the distribution function rises, and 60 halvings are more than a double can tell apart. */
function betaQuantile(share: number, a: number, b: number): number {
  let [low, high] = [0, 1];
  for (let halving = 0; halving < 60; halving += 1) {
    const middle = (low + high) / 2;
    if (betaCumulative(middle, a, b) < share) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** Regularised incomplete beta function I_x(a, b) by its continued fraction (DLMF 8.17.22), where that converges fast. */
function betaCumulative(x: number, a: number, b: number): number {
  if (x > (a + 1) / (a + b + 2)) return 1 - betaCumulative(1 - x, b, a);
  const front = Math.exp(a * Math.log(x) + b * Math.log1p(-x) - logBeta(a, b)) / a;
  return x === 0 ? 0 : front / continuedFraction(x, a, b);
}

/** 1 + d1/(1 + d2/(1 + …)), from the back. */
function continuedFraction(x: number, a: number, b: number): number {
  let value = 1;
  for (let term = 200; term >= 1; term -= 1) {
    const m = Math.floor(term / 2);
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    value = 1 + (term % 2 === 0 ? even : odd) / value;
  }
  return value;
}

/** ln B(a, b) for a and b that are whole numbers and a half: Γ(1/2) = √π, and Γ(z + 1) = z Γ(z). */
function logBeta(a: number, b: number): number {
  const logGammaOfHalves = (z: number): number => {
    let sum = Math.log(Math.PI) / 2;
    for (let factor = 0.5; factor < z; factor += 1) sum += Math.log(factor);
    return sum;
  };
  let logGammaOfSum = 0; // a + b is whole: Γ(n) = (n − 1)!
  for (let factor = 2; factor < a + b; factor += 1) logGammaOfSum += Math.log(factor);
  return logGammaOfHalves(a) + logGammaOfHalves(b) - logGammaOfSum;
}
