import { expect, test } from 'vitest';
import {
  drawsInRound,
  isKept,
  type Keep,
  ROUNDS,
  type TaskTally,
} from '../../environments/deep-research/pass-rates.ts';

type Draw = 'pass' | 'fail' | 'broken';

const add = (tally: TaskTally, draw: Draw): TaskTally => ({
  rollouts: tally.rollouts + (draw === 'broken' ? 0 : 1),
  masked: tally.masked + (draw === 'broken' ? 1 : 0),
  passes: tally.passes + (draw === 'pass' ? 1 : 0),
});
const NONE: TaskTally = { rollouts: 0, masked: 0, passes: 0 };

/** The rounds of a profile over fixed outcomes: what is found, in how many draws and rounds. */
function inRounds(draws: readonly Draw[], keep: Keep): { tally: TaskTally; rounds: number } {
  let tally = NONE;
  for (let round = 0; ; round += 1) {
    const drawn = tally.rollouts + tally.masked;
    const count = drawsInRound(tally, keep, draws.length, round);
    if (count === 0) return { tally, rounds: round };
    tally = draws.slice(drawn, drawn + count).reduce(add, tally);
  }
}

/** Every sequence of six outcomes. */
const sequences = Array.from({ length: 3 ** 6 }, (_, number) =>
  Array.from({ length: 6 }, (_, at) => (['pass', 'fail', 'broken'] as const)[Math.floor(number / 3 ** at) % 3] as Draw),
);
const keeps: Keep[] = [
  { min_passes: 1, max_passes: 5 },
  { min_passes: 2, max_passes: 4 },
  { min_passes: 0, max_passes: 3 },
  { min_passes: 3, max_passes: 6 },
  { min_passes: 3, max_passes: 3 },
];

test.each(keeps)('at equal draws, stopping decided tasks keeps the same tasks as sampling all of them: %j', (keep) => {
  let saved = 0;
  for (const draws of sequences) {
    const whole = draws.reduce(add, NONE);
    const { tally, rounds } = inRounds(draws, keep);
    expect({ draws, kept: isKept(tally, keep) }).toEqual({ draws, kept: isKept(whole, keep) });
    expect(rounds).toBeLessThanOrEqual(ROUNDS);
    saved += draws.length - tally.rollouts - tally.masked;
  }
  expect(saved).toBeGreaterThan(0);
});

test('of eight rollouts and bounds 1 to 7, a task that passed and failed has had enough after two', () => {
  const keep = { min_passes: 1, max_passes: 7 };
  expect(inRounds(['pass', 'fail', ...Array<Draw>(6).fill('pass')], keep).tally).toEqual({
    rollouts: 2,
    masked: 0,
    passes: 1,
  });
  expect(inRounds(Array<Draw>(8).fill('fail'), keep).tally.rollouts).toBe(8); // the eighth might have passed
});

test('a task beyond max_passes is sampled no further', () => {
  expect(drawsInRound({ rollouts: 3, masked: 0, passes: 3 }, { min_passes: 1, max_passes: 2 }, 8, 1)).toBe(0);
});

test('a task that cannot reach min_passes any more is sampled no further; a broken rollout is none of its passes', () => {
  const keep = { min_passes: 3, max_passes: 8 };
  expect(drawsInRound({ rollouts: 4, masked: 2, passes: 0 }, keep, 8, 2)).toBe(0);
  expect(drawsInRound({ rollouts: 4, masked: 1, passes: 0 }, keep, 8, 2)).toBeGreaterThan(0);
});
