import { describe, expect, test } from 'vitest';
import {
  bestSteps,
  breach,
  keptSteps,
  nextMove,
  plateau,
  type Standing,
  samplesAhead,
} from '../../activities/stage-course.ts';

const curve = (points: Record<number, number>) =>
  new Map(Object.entries(points).map(([step, value]) => [Number(step), value]));
const ENTROPY = 'train/entropy';
const SCORE = 'eval/held_out/avg_at_2';

describe('a plateau', () => {
  const rule = { patience: 10, min_delta: 0.01 };

  test('is when the best is as old as the patience', () => {
    const points = curve({ 5: 0.3, 10: 0.4, 15: 0.4, 20: 0.35 });
    expect(plateau(points, rule, 15)).toBe(false);
    expect(plateau(points, rule, 20)).toBe(true);
  });

  test('does not end by gains below min_delta, however many', () => {
    expect(plateau(curve({ 5: 0.4, 10: 0.409, 15: 0.4095 }), rule, 15)).toBe(true);
    expect(plateau(curve({ 5: 0.4, 10: 0.411, 15: 0.4 }), rule, 15)).toBe(false);
  });

  test('is not before anything was measured', () => {
    expect(plateau(curve({}), rule, 100)).toBe(false);
  });
});

describe('a limit', () => {
  const limits = { [ENTROPY]: { min: 0.1, max: null }, 'train/mismatch_abs': { min: null, max: 0.05 } };
  const curves = (entropy: Record<number, number>, mismatch: Record<number, number> = {}) =>
    new Map([
      [ENTROPY, curve(entropy)],
      ['train/mismatch_abs', curve(mismatch)],
    ]);
  const at = (step: number, since = 0) => ({ step, since });

  test('is passed when one metric was beyond it for so many steps in a row', () => {
    const found = curves({ 1: 0.05, 2: 0.2, 3: 0.05, 4: 0.04, 5: 0.03 });
    expect(breach({ limits, for: 3 }, found, at(4))).toBeNull();
    expect(breach({ limits, for: 3 }, found, at(5))).toBe(
      'train/entropy is 0.03, below 0.1, at step 5 and the 2 before',
    );
  });

  test('is not passed by two metrics in turn', () => {
    expect(breach({ limits, for: 2 }, curves({ 1: 0.05, 2: 0.2 }, { 1: 0.01, 2: 0.9 }), at(2))).toBeNull();
  });

  test('counts anew after a pause', () => {
    const found = curves({ 3: 0, 4: 0, 5: 0, 6: 0 });
    expect(breach({ limits, for: 2 }, found, at(5, 4))).toBeNull();
    expect(breach({ limits, for: 2 }, found, at(6, 4))).not.toBeNull();
  });

  test('is passed by what is no number, and not by what was not measured or stands on the limit', () => {
    expect(breach({ limits, for: 1 }, curves({}, { 1: Number.NaN }), at(1))).toBe(
      'train/mismatch_abs is no number, at step 1',
    );
    expect(breach({ limits, for: 1 }, curves({}), at(1))).toBeNull();
    expect(breach({ limits, for: 1 }, curves({ 1: 0.1 }, { 1: 0.05 }), at(1))).toBeNull();
  });
});

describe('what comes next', () => {
  type Course = Parameters<typeof nextMove>[0];
  const plain: Course = {
    evaluate: null,
    health: null,
    refresh_every: null,
    until: { steps: 10, epochs: null, plateau: null },
    rollout: { prompts_per_step: 4, max_staleness: 0 },
  };
  const evaluate = { benchmark: 'held_out', every: 2, metric: SCORE } as Course['evaluate'];
  const standing = (step: number, change: Partial<Standing> = {}): Standing => ({
    step,
    steps: 10,
    ends: 'steps',
    curves: new Map(),
    pausedAt: 0,
    refreshed: null,
    ...change,
  });

  test('is a step, until there were enough', () => {
    expect(nextMove(plain, standing(9))).toEqual({ do: 'train' });
    expect(nextMove(plain, standing(10))).toEqual({ do: 'end', step: 10, reason: 'steps' });
    expect(nextMove(plain, standing(10, { ends: 'epochs' }))).toEqual({ do: 'end', step: 10, reason: 'epochs' });
  });

  test('is an evaluation when one is due and not measured yet, also after the last step', () => {
    const course = { ...plain, evaluate };
    expect(nextMove(course, standing(0))).toEqual({ do: 'train' });
    expect(nextMove(course, standing(2))).toEqual({ do: 'evaluate' });
    expect(nextMove(course, standing(10))).toEqual({ do: 'evaluate' });
    const measured = new Map([[SCORE, curve({ 2: 0.5 })]]);
    expect(nextMove(course, standing(2, { curves: measured }))).toEqual({ do: 'train' });
  });

  test('is the end on a plateau, before the steps are up', () => {
    const until = { ...plain.until, plateau: { metric: SCORE, patience: 4, min_delta: 0 } };
    const curves = new Map([[SCORE, curve({ 2: 0.5, 4: 0.5, 6: 0.4 })]]);
    expect(nextMove({ ...plain, evaluate, until }, standing(6, { curves }))).toEqual({
      do: 'end',
      step: 6,
      reason: 'plateau',
    });
  });

  test('in trouble it is a pause, told once; or the end with the best checkpoint', () => {
    const limits = { [ENTROPY]: { min: 0.1, max: null } };
    const curves = new Map([
      [ENTROPY, curve({ 5: 0.01, 6: 0.01 })],
      [SCORE, curve({ 2: 0.5, 4: 0.6, 6: 0.1 })],
    ]);
    const pause = { ...plain, evaluate, health: { limits, for: 2, on_breach: 'pause' as const } };
    const reason = 'train/entropy is 0.01, below 0.1, at step 6 and the 1 before';
    expect(nextMove(pause, standing(6, { curves }))).toEqual({ do: 'pause', reason });
    expect(nextMove(pause, standing(6, { curves, pausedAt: 6 }))).toEqual({ do: 'train' });

    const back = { ...pause, health: { limits, for: 2, on_breach: 'back_to_best' as const } };
    expect(nextMove(back, standing(6, { curves }))).toEqual({ do: 'end', step: 4, reason: 'health' });
    const unmeasured = new Map([[ENTROPY, curve({ 4: 0.01, 5: 0.01 })]]);
    expect(nextMove(back, standing(5, { curves: unmeasured }))).toMatchObject({ do: 'pause' });
  });

  test('is to measure pass rates again when that is due, and the end where too few tasks are left', () => {
    const course = { ...plain, refresh_every: 5 };
    expect(nextMove(course, standing(5))).toEqual({ do: 'refresh' });
    expect(nextMove(course, standing(5, { refreshed: 4 }))).toEqual({ do: 'train' });
    expect(nextMove(course, standing(5, { refreshed: 3 }))).toEqual({ do: 'end', step: 5, reason: 'too_few_solvable' });
    expect(nextMove(course, standing(10))).toMatchObject({ do: 'end', reason: 'steps' }); // nothing would draw from it
  });
});

describe('sampling ahead', () => {
  const course = (staleness: number, every: number | null = null, refresh_every: number | null = null) => ({
    evaluate: every === null ? null : ({ benchmark: 'held_out', every, metric: SCORE } as never),
    health: null,
    refresh_every,
    until: { steps: 6, epochs: null, plateau: null },
    rollout: { prompts_per_step: 4, max_staleness: staleness },
  });
  const stepsAhead = (of: ReturnType<typeof course>) => [1, 2, 3, 4, 5, 6].filter((step) => samplesAhead(of, step));

  test('is every step but the first, and none on-policy', () => {
    expect(stepsAhead(course(1))).toEqual([2, 3, 4, 5, 6]);
    expect(stepsAhead(course(0))).toEqual([]);
  });

  test('is not after a checkpoint that is measured', () => {
    expect(stepsAhead(course(1, 2))).toEqual([2, 4, 6]);
    expect(stepsAhead(course(1, null, 3))).toEqual([2, 3, 5, 6]);
    expect(stepsAhead(course(1, 1))).toEqual([]);
  });

  test('begins with the step before, and not beyond the last', () => {
    const curves = new Map([[SCORE, curve({ 2: 0, 4: 0, 6: 0 })]]);
    const moves = (of: ReturnType<typeof course>) =>
      [0, 1, 2, 3, 4, 5].map((step) =>
        nextMove(of, { step, steps: 6, ends: 'steps', curves, pausedAt: 0, refreshed: 4 }),
      );
    const on = { do: 'train' };
    const ahead = { do: 'train', ahead: true };
    expect(moves(course(1))).toEqual([ahead, ahead, ahead, ahead, ahead, on]);
    expect(moves(course(1, 2))).toEqual([ahead, on, ahead, on, ahead, on]);
    expect(moves(course(0))).toEqual([on, on, on, on, on, on]);
  });
});

test('the newest state stays, the newest of every so many, and the best of those that were measured', () => {
  const saved = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
  const measured = curve({ 2: 0.9, 4: 0.7, 6: 0.9, 8: Number.NaN, 10: 0.1 });
  expect(bestSteps(measured)).toEqual([2, 6, 4, 10]);
  const kept = (rule: Parameters<typeof keptSteps>[2]) => [...keptSteps(saved, measured, rule)].sort((a, b) => a - b);
  expect(kept({ every: 1, last: 2, best: 0 })).toEqual([10, 11]);
  expect(kept({ every: 5, last: 2, best: 2 })).toEqual([2, 5, 6, 10, 11]);
});
