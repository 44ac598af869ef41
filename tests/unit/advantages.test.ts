import { expect, test } from 'vitest';
import { grpoAdvantages, isUninformative } from '../../environments/deep-research/advantages.ts';

test('GRPO: reward minus group mean over population deviation', () => {
  // By hand: rewards 1,0,0,1: mean 0.5, deviation 0.5, so ±0.5 / (0.5 + 1e-6).
  const advantages = grpoAdvantages([1, 0, 0, 1], { normalizeStd: true });
  expect(advantages).toEqual([1, -1, -1, 1].map((sign) => expect.closeTo(sign * 0.999998, 9)));
  // 1,0,0,0: mean 0.25, deviation sqrt(0.1875) = 0.4330127.
  expect(grpoAdvantages([1, 0, 0, 0], { normalizeStd: true })[0]).toBeCloseTo(0.75 / 0.4330137, 6);
});

test('Dr. GRPO leaves the deviation out', () => {
  expect(grpoAdvantages([1, 0, 0, 0], { normalizeStd: false })).toEqual([0.75, -0.25, -0.25, -0.25]);
});

test('a group that agrees has no advantage anywhere, and is known as uninformative', () => {
  expect(grpoAdvantages([1, 1, 1], { normalizeStd: true })).toEqual([0, 0, 0]);
  expect(isUninformative([0, 0])).toBe(true);
  expect(isUninformative([0, 0, -1])).toBe(false);
});
