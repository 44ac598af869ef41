import { expect, test } from 'vitest';
import {
  comparePaired,
  poolSeeds,
  questionValue,
  signFlipTest,
} from '../../environments/deep-research/benchmarks/paired.ts';
import type { QuestionResult } from '../../environments/deep-research/benchmarks/score-benchmark.ts';

const valuesOf = (values: readonly number[]) => new Map(values.map((value, at) => [`q${at}`, value]));

test('few differences: the exact p of scipy.stats.permutation_test(permutation_type="samples")', () => {
  const policy = valuesOf([0.5, 0, 1, 1, 0.5, 0, 1, 0.5, 0, 1, 1, 0.5]);
  const control = valuesOf([0, 0, 0.5, 1, 0, 0.5, 0.5, 0, 0, 1, 0.5, 0]);
  const { difference, p_value, ...counts } = comparePaired(control, policy, 'test');
  // Seven differences of one half and one of minus one half: 2 · (1 + 8) of 2^8 flips are as far from 0.
  expect(p_value).toBe(0.0703125);
  expect(difference.value).toBe(0.25);
  // scipy.stats.bootstrap(method="percentile", n_resamples=200000): 0.0417 and 0.4167.
  expect(difference.low).toBeCloseTo(0.0417, 1);
  expect(difference.high).toBeCloseTo(0.4167, 1);
  expect(counts).toEqual({ questions: 12, wins: 7, losses: 1, ties: 4 });
});

test('many differences: within the error of sampling of scipy, with 500,000 resamples', () => {
  // numpy.random.default_rng(0).normal(0.12, 0.5, 60), rounded to quarters.
  const quarters = [
    1, 0, 2, 1, -1, 1, 3, 2, -1, -2, -1, 1, -4, 0, -2, -1, -1, 0, 1, 3, 0, 3, -1, 1, 2, 1, -1, -1, 0, 1, -2, 0, 0, 2, 1,
    1, -1, 0, 2, 3, -2, 4, 3, 2, 1, 0, 3, 4, 4, 3, 1, -2, 0, 2, -2, 1, 1, 2, -2, -1,
  ];
  const differences = quarters.map((quarter) => quarter / 4);
  expect(Math.abs(signFlipTest(differences, 'test') - 0.01807)).toBeLessThan(0.004);
  const { difference } = comparePaired(valuesOf(differences.map(() => 0)), valuesOf(differences), 'test');
  expect(difference.value).toBeCloseTo(0.14583333, 8);
  expect(Math.abs(difference.low - 0.0333)).toBeLessThan(0.01);
  expect(Math.abs(difference.high - 0.2583)).toBeLessThan(0.01);
});

test('nothing differs: p is 1; questions that only one was asked are left out', () => {
  expect(signFlipTest([0, 0], 'test')).toBe(1);
  const { questions, difference } = comparePaired(valuesOf([1, 1]), valuesOf([1]), 'test');
  expect([questions, difference.value]).toEqual([1, 0]);
});

test('seeds are pooled by question, so a question stays one observation', () => {
  const pooled = poolSeeds([
    new Map([
      ['a', 1],
      ['b', 0],
    ]),
    new Map([['a', 0.5]]),
  ]);
  expect(Object.fromEntries(pooled)).toEqual({ a: 0.75, b: 0 });
});

test('the value of a question by metric', () => {
  const question = { samples: 4, correct: 1 } as QuestionResult;
  expect(questionValue('avg_at_4', question)).toBe(0.25);
  expect(questionValue('pass_at_2', question)).toBeCloseTo(0.5, 12); // 1 − C(3,2) / C(4,2)
  expect(questionValue('pass_at_8', question)).toBeNull();
});
