import { expect, test } from 'vitest';
import { isUninformative } from '../../environments/deep-research/advantages.ts';
import { chooseGroups, type GroupKeep } from '../../environments/deep-research/choose-groups.ts';

const group = (...outcomes: number[]) => outcomes;
const reading = {
  outcomeOf: (outcome: number) => outcome,
  teaches: (outcomes: readonly number[]) => !isUninformative(outcomes),
};
const choose = (groups: ReturnType<typeof group>[], keep: GroupKeep | null, perStep = 4) =>
  chooseGroups(groups, { perStep, keep }, reading);

test('groups that all passed or all failed are dropped, and as many are missing', () => {
  const groups = [group(1, 1, 1, 1), group(1, 0, 0, 0), group(0, 0, 0, 0), group(1, 1, 0, 0)];
  expect(choose(groups, null)).toEqual({ chosen: [groups[1], groups[3]], missing: 2, outside: 0 });
});

test('bounds of a profile of 8 hold for groups of 4 as shares', () => {
  // 2 to 6 of 8 is a quarter to three quarters: 1 to 3 of 4.
  const keep = { min_passes: 2, max_passes: 6, of: 8 };
  const groups = [group(1, 0, 0, 0), group(1, 1, 1, 0), group(1, 1, 1, 1, 1, 1, 1, 0), group(0.5, -1, 0, 0)];
  expect(choose(groups, keep)).toEqual({ chosen: [groups[0], groups[1]], missing: 2, outside: 2 });
});

test('a bound that is met exactly keeps the group, for every size up to 64', () => {
  for (let of = 2; of <= 64; of += 1) {
    const rewards = [1, ...Array<number>(of - 1).fill(0)];
    expect(choose([group(...rewards)], { min_passes: 1, max_passes: of - 1, of }, 1).missing).toBe(0);
  }
});

test('an update takes no more groups than it wants, the first ones', () => {
  const groups = [group(1, 0), group(0, 1), group(1, 0)];
  expect(choose(groups, null, 2)).toEqual({ chosen: groups.slice(0, 2), missing: 0, outside: 0 });
});

test('a group of which everything broke is no group', () => {
  expect(choose([[]], { min_passes: 0, max_passes: 8, of: 8 }, 1)).toEqual({ chosen: [], missing: 1, outside: 0 });
});
