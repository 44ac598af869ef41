import { expect, test } from 'vitest';
import {
  bootstrapMean,
  histogram,
  jeffreysInterval,
  passAtK,
  quantile,
} from '../../environments/deep-research/benchmarks/statistics.ts';

test('pass@k is 1 − C(n−c, k) / C(n, k)', () => {
  // By hand: C(7,1)/C(10,1) = 0.7; C(7,5)/C(10,5) = 21/252; C(3,2)/C(4,2) = 3/6; C(6,4)/C(8,4) = 15/70.
  expect(passAtK({ samples: 10, correct: 3 }, 1)).toBeCloseTo(0.3, 12);
  expect(passAtK({ samples: 10, correct: 3 }, 5)).toBeCloseTo(1 - 21 / 252, 12);
  expect(passAtK({ samples: 4, correct: 1 }, 2)).toBeCloseTo(0.5, 12);
  expect(passAtK({ samples: 8, correct: 2 }, 4)).toBeCloseTo(1 - 15 / 70, 12);
  // n = 200 as in arXiv:2107.03374; the binomials themselves would overflow a double.
  expect(passAtK({ samples: 200, correct: 20 }, 100)).toBeCloseTo(0.9999996678312922, 12);
});

test('pass@k is 0 with nothing right, 1 when k cannot miss, and refused beyond the samples', () => {
  expect(passAtK({ samples: 5, correct: 0 }, 5)).toBe(0);
  expect(passAtK({ samples: 5, correct: 2 }, 4)).toBe(1);
  expect(() => passAtK({ samples: 2, correct: 1 }, 3)).toThrow(RangeError);
});

test('pass@k is unbiased: its mean over all draws of n is the true probability', () => {
  const [n, k, p] = [6, 3, 0.4];
  const choose = (total: number, taken: number): number =>
    taken === 0 ? 1 : (choose(total - 1, taken - 1) * total) / taken;
  const expected = Array.from(
    { length: n + 1 },
    (_, correct) => choose(n, correct) * p ** correct * (1 - p) ** (n - correct) * passAtK({ samples: n, correct }, k),
  );
  expect(expected.reduce((sum, part) => sum + part, 0)).toBeCloseTo(1 - (1 - p) ** k, 12);
});

test('the bootstrap interval of a mean agrees with scipy.stats.bootstrap(method="percentile", n_resamples=200000)', () => {
  const sevenOfTwenty = Array.from({ length: 20 }, (_, index) => (index < 7 ? 1 : 0));
  expect(bootstrapMean(sevenOfTwenty, 'test')).toEqual({
    value: 0.35,
    low: expect.closeTo(0.15, 9),
    high: expect.closeTo(0.55, 9),
  });
  const halves = [...Array(10).fill(0.5), ...Array(5).fill(1), ...Array(17).fill(0)] as number[];
  const { value, low, high } = bootstrapMean(halves, 'test');
  expect(value).toBe(0.3125);
  expect(low).toBeCloseTo(0.1875, 1);
  expect(high).toBeCloseTo(0.4375, 1);
});

test('an interval is the same whenever it is computed, and has no width when all questions agree', () => {
  const values = [1, 0, 0.5, 1, 0];
  expect(bootstrapMean(values, 'held_out')).toEqual(bootstrapMean(values, 'held_out'));
  expect(bootstrapMean([1, 1, 1], 'held_out')).toEqual({ value: 1, low: 1, high: 1 });
});

test('quantiles interpolate as numpy.quantile does', () => {
  const values = [1, 2, 3, 4, 10];
  expect([0.025, 0.5, 0.975].map((share) => quantile(values, share))).toEqual([
    expect.closeTo(1.1),
    3,
    expect.closeTo(9.4),
  ]);
});

test('a histogram counts every value once, the edge into the bucket above it', () => {
  expect(histogram([0, 9, 10, 19, 20, 500], [10, 20])).toEqual([
    { from: 0, to: 10, count: 2 },
    { from: 10, to: 20, count: 2 },
    { from: 20, to: null, count: 2 },
  ]);
});

test('the interval of a pass rate is that of scipy.stats.beta, with ends at 0 and 1 where everything agrees', () => {
  const golden: [number, number, number, number][] = [
    [0, 8, 0, 0.2622172487171857],
    [1, 8, 0.013838233790320757, 0.4537193210324146],
    [4, 8, 0.1989656112814958, 0.8010343887185041],
    [8, 8, 0.7377827512828142, 1],
    [1, 2, 0.06083027592009732, 0.9391697240799026],
    [3, 1000, 0.0008456348018298346, 0.007984367358403443],
    [700, 1024, 0.6546212531714644, 0.7115300681302463],
  ];
  for (const [correct, samples, low, high] of golden) {
    const found = jeffreysInterval({ samples, correct });
    expect(found.value).toBe(correct / samples);
    expect(found.low).toBeCloseTo(low, 10);
    expect(found.high).toBeCloseTo(high, 10);
  }
});

test('nothing sampled leaves any pass rate possible', () => {
  expect(jeffreysInterval({ samples: 0, correct: 0 })).toEqual({ value: 0, low: 0, high: 1 });
});
