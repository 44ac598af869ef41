import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  type IgpoOptions,
  type IgpoRollout,
  igpoAdvantages,
  isMeasured,
  missingBelief,
  type TurnCredits,
  teachesNothing,
  turnRewards,
} from '../../environments/deep-research/advantages-igpo.ts';
import { IGPO_PRESETS } from '../../schemas/algorithms.ts';
import { python } from '../../services/home.ts';
import { sharedData } from '../absent-parts.ts';
import released from '../fixtures/igpo/released-code.json' with { type: 'json' };

const drVenus: IgpoOptions = { ...IGPO_PRESETS.dr_venus, formatPenalty: 1, normalizeStd: true };

/** The golden vector of the recipe: one group, the second rollout's first turn malformed. */
const golden: IgpoRollout[] = [
  {
    values: [-3.0, -2.9, -2.0, -2.1, -1.9, -0.5],
    tools: ['search', 'visit', 'search', 'search', 'visit', null],
    malformed: [],
    outcome: 1,
  },
  { values: [-3.0, -3.1, -2.8, -3.2], tools: ['search', 'visit', 'visit', null], malformed: [0], outcome: 0 },
  { values: [-3.0, -2.7, -2.6], tools: ['search', 'search', null], malformed: [], outcome: 0 },
  { values: [-3.0, -2.5], tools: ['visit', null], malformed: [], outcome: 1 },
];

const to4 = (group: TurnCredits[] | undefined): number[][] | undefined =>
  group?.map(({ advantages }) => advantages.map((value) => Number(value.toFixed(4))));

describe('the golden vector', () => {
  test('has the turn rewards of the recipe: a visit absorbs the searches before it, a penalty takes a turn over', () => {
    expect(golden.map((rollout) => turnRewards(rollout, drVenus).gains)).toEqual([
      [null, expect.closeTo(1.0, 12), null, null, expect.closeTo(1.5, 12)],
      [-1, expect.closeTo(0.2, 12), expect.closeTo(-0.4, 12)],
      [null, null],
      [expect.closeTo(0.5, 12)],
    ]);
  });

  test('has its advantages and its scale', () => {
    const { credits, scale } = igpoAdvantages([golden], drVenus);
    expect(scale).toBeCloseTo(1.189521, 6);
    expect(to4(credits[0])).toEqual([
      [3.5311, 3.5311, 2.6643, 2.6643, 2.6643, 1.0],
      [-3.7527, -1.9954, -1.95, -1.0],
      [-1, -1, -1],
      [1.2357, 1.0],
    ]);
  });

  test('and those without the scale', () => {
    const { credits, scale } = igpoAdvantages([golden], { ...drVenus, normalize: 'separate' });
    expect(scale).toBe(1);
    expect(to4(credits[0])).toEqual([
      [3.1123, 3.1123, 2.3911, 2.3911, 2.3911, 1.0],
      [-3.2914, -1.8212, -1.7907, -1.0],
      [-1, -1, -1],
      [1.1902, 1.0],
    ]);
  });
});

/** mulberry32: the same batches on every machine. */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Case {
  groups: IgpoRollout[][];
  options: IgpoOptions;
}

function randomCase(seed: number): Case {
  const random = randomFrom(seed);
  const below = (bound: number): number => Math.floor(random() * bound);
  const oneOf = <T>(list: readonly T[]): T => list[below(list.length)] as T;
  const rollout = (): IgpoRollout => {
    const turns = 1 + below(9);
    const tools = Array.from({ length: turns - 1 }, () => oneOf(['search', 'visit', 'Visit', 'search', null]));
    let belief = -1 - 4 * random();
    const values = Array.from({ length: turns }, () => {
      if (random() > 0.2) belief += random() - 0.5; // some gains are exactly 0
      return belief;
    });
    const malformed = Array.from({ length: turns }, (_, turn) => turn).filter(() => random() < 0.15);
    return { values, tools: [...tools, null], malformed, outcome: oneOf([0, 1, 0.25, 1, 0]) };
  };
  return {
    groups: Array.from({ length: 1 + below(4) }, () => Array.from({ length: 1 + below(5) }, rollout)),
    options: {
      ...drVenus,
      measure: oneOf(['log_prob', 'prob']),
      scope: oneOf([['visit'], ['search', 'visit'], null]),
      normalize: oneOf(['scaled_separate', 'separate']),
      gamma: oneOf([0.5, 0.95, 1]),
      weight: oneOf([0.5, 1]),
    },
  };
}

/** Calls the reference as its own main does: gains from beliefs, then penalties written over them. */
const CALL_REFERENCE = `
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("igpo_ref", sys.argv[1])
reference = importlib.util.module_from_spec(spec); spec.loader.exec_module(reference)
answers = []
for case in json.load(sys.stdin):
    options = case["options"]
    mode = "log_prob_diff" if options["measure"] == "log_prob" else "prob_diff"
    groups = []
    for group in case["groups"]:
        groups.append([])
        for rollout in group:
            gains = reference.ig_from_logps(rollout["values"], rollout["tools"], set(options["scope"] or []), mode)
            last = len(rollout["values"]) - 1
            for turn in rollout["malformed"]:
                if turn < last: gains[turn] = -1.0
            groups[-1].append({"ig": gains, "outcome": -1.0 if last in rollout["malformed"] else rollout["outcome"]})
    advantages, scale = reference.igpo(groups, gamma=options["gamma"], mode=options["normalize"], w=options["weight"])
    answers.append({"advantages": advantages, "scale": scale})
json.dump(answers, sys.stdout)
`;

const shared = sharedData();

test.skipIf(shared === null)('1,000 random batches agree with the reference in Python to 1e-12', () => {
  const cases = Array.from({ length: 1000 }, (_, index) => randomCase(20_260_000 + index));
  const reference = join(shared as string, '../reference/igpo_ref.py');
  const answers = JSON.parse(
    execFileSync(python(), ['-c', CALL_REFERENCE, reference], {
      input: JSON.stringify(cases),
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
    }),
  ) as { advantages: number[][]; scale: number }[];
  let largest = 0;
  let compared = 0;
  for (const [index, { groups, options }] of cases.entries()) {
    const ours = igpoAdvantages(groups, options);
    const theirs = answers[index] as (typeof answers)[number];
    expect(Math.abs(ours.scale - theirs.scale)).toBeLessThanOrEqual(1e-12);
    const turns = ours.credits.flat().flatMap(({ advantages }) => advantages);
    const expected = theirs.advantages.flat();
    expect(turns).toHaveLength(expected.length);
    for (const [at, value] of turns.entries()) largest = Math.max(largest, Math.abs(value - (expected[at] as number)));
    compared += turns.length;
  }
  expect(compared).toBeGreaterThan(20_000);
  expect(largest).toBeLessThanOrEqual(1e-12);
});

describe("what the authors' own code gives (tests/fixtures/igpo/made-with.py)", () => {
  test.each(released.cases)('$name', ({ groups, options, advantages }) => {
    const ours = igpoAdvantages(groups as IgpoRollout[][], { ...drVenus, ...(options as Partial<IgpoOptions>) });
    const given = ours.credits.map((group, at) =>
      group.map((own, index) => everyToken(own, (groups as IgpoRollout[][])[at]?.[index] as IgpoRollout)),
    );
    expect(given).toEqual(
      advantages.map((group) => group.map((turns) => turns.map((value) => expect.closeTo(value, 11)))),
    );
  });
});

function everyToken({ advantages, steps }: TurnCredits, { tokens = [] }: IgpoRollout): number[] {
  if (steps === undefined) return advantages;
  const length = tokens.reduce((sum, count) => sum + count, 0);
  return Array.from({ length }, (_, token) => steps.findLast(([from]) => from <= token)?.[1] ?? Number.NaN);
}

describe('by hand', () => {
  const pair = (values: [number, number], outcome: number): IgpoRollout => ({
    values,
    tools: ['search', null],
    malformed: [],
    outcome,
  });

  test('`every` 2 measures before turns 0, 2, 4 … that follow a turn within the scope', () => {
    const settings = { ...IGPO_PRESETS.dr_venus, scope: null, every: 2 };
    expect([0, 1, 2, 3, 4].map((turn) => isMeasured(turn, 'search', settings))).toEqual([
      true,
      false,
      true,
      false,
      true,
    ]);
    expect(isMeasured(2, 'search', { ...settings, scope: ['visit'] })).toBe(false);
    const rollout = { ...pair([0, 0], 1), values: [-4, null, -3, null], tools: ['a', 'b', 'c', null] };
    expect(turnRewards(rollout, { ...drVenus, ...settings }).gains).toEqual([null, 1, null]);
  });

  test('per position: the return to the end, less the mean at that token over rollouts, an ended one counting 0', () => {
    // Returns: first 0.5+1 = 1.5 over tokens 0-1, then 1 over 2-3; second 0 over token 0, 0 at token 1.
    const first = { ...pair([Math.log(0.25), Math.log(0.75)], 1), tokens: [2, 2] };
    const second = { ...pair([Math.log(0.5), Math.log(0.5)], 0), tokens: [1, 1] };
    const { credits } = igpoAdvantages([[first, second]], {
      ...IGPO_PRESETS.released_2025,
      formatPenalty: 1,
      normalizeStd: true,
    });
    expect(credits[0]?.[0]?.advantages).toEqual([expect.closeTo(0.75, 12), expect.closeTo(0.5, 12)]);
    expect(credits[0]?.[1]?.advantages).toEqual([expect.closeTo(-0.75, 12), expect.closeTo(-0.75, 12)]);
    expect(credits[0]?.[1]?.steps?.map(([from]) => from)).toEqual([0, 1]);
  });

  test('a gain that is no number counts 0, and keeps its position', () => {
    expect(turnRewards(pair([Number.NEGATIVE_INFINITY, -1], 1), { ...drVenus, scope: null }).gains).toEqual([0]);
  });

  test('a malformed answer overrides the outcome, and its penalty is as large as the reward says', () => {
    const rollout = { ...pair([-1, -1], 1), malformed: [1] };
    expect(turnRewards(rollout, { ...drVenus, formatPenalty: 0.5 })).toEqual({ gains: [null], outcome: -0.5 });
    expect(turnRewards(rollout, { ...drVenus, formatPenalty: 0 }).outcome).toBe(1);
  });

  test('the floor of the scale keeps gains alive where all outcomes agree', () => {
    // z of the gains ±1 / (0.5 + …): mean |z| is 1 but for the epsilons, so the scale is 0.3.
    const { scale, credits } = igpoAdvantages([[pair([-2, -1], 1), pair([-2, -2], 1)]], { ...drVenus, scope: null });
    expect(scale).toBeCloseTo(0.3, 5);
    expect(credits[0]?.[0]?.advantages[0]).toBeCloseTo(0.3, 5);
  });

  test('a group whose outcomes agree still teaches when its gains differ', () => {
    const rewards = (...groups: IgpoRollout[]) =>
      groups.map((rollout) => turnRewards(rollout, { ...drVenus, scope: null }));
    expect(teachesNothing(rewards(pair([-2, -1], 1), pair([-2, -2], 1)))).toBe(false);
    expect(teachesNothing(rewards(pair([-2, -1], 1), pair([-3, -2], 1)))).toBe(true);
  });

  test('a belief that is needed and not there is named, never taken for no gain', () => {
    const rollout = { ...pair([-1, 0], 1), values: [-1, null] };
    expect(missingBelief(rollout, { ...drVenus, scope: null })).toBe(1);
    expect(missingBelief(rollout, drVenus)).toBeNull(); // a search is outside its scope
    expect(() => igpoAdvantages([[rollout]], { ...drVenus, scope: null })).toThrow('no belief before turn 1');
    expect(missingBelief({ ...rollout, values: [null], tools: [null] }, drVenus)).toBeNull(); // an answer alone
  });
});
