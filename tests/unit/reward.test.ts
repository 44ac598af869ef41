import { describe, expect, test } from 'vitest';
import { contains, f1, isExactMatch, listItems, normalizedTokens } from '../../environments/deep-research/answer.ts';
import { reward, score } from '../../environments/deep-research/reward.ts';

const ref = (answer: string, ...aliases: string[]) => ({ answer, aliases });

describe('normalisation', () => {
  test.each([
    ['The MIT License.', 'mit license'],
    ['Apache-2.0', 'apache 2.0'],
    ['v1.10.2', '1.10.2'],
    ['1.10.0', '1.10.0'],
    ['12,000', '12000'],
    ['1.10', '1.10'],
    ['ver 3.0.', 'ver 3.0'],
    ['Île-de-France', 'île de france'],
    ['ＦＵＬＬ width', 'full width'],
    ['a cat, an owl, the end', 'cat owl end'],
    ['>=20.19', '20.19'],
    ['C++ and C#.', 'c++ and c#'],
    ['A', 'a'],
    ['*', '*'],
  ])('%s', (text, normal) => expect(normalizedTokens(text).join(' ')).toBe(normal));
});

describe('exact match', () => {
  test('ignores case, punctuation and articles', () => expect(isExactMatch('the mit.', ref('MIT'))).toBe(true));
  test('takes an alias', () => expect(isExactMatch('Big Apple', ref('New York', 'The Big Apple'))).toBe(true));
  test('tells versions apart', () => expect(isExactMatch('1.1.0', ref('1.10'))).toBe(false));
  test('a number is not its prefix', () => expect(isExactMatch('12', ref('12,000'))).toBe(false));
  test('an enumeration matches in any order and notation', () => {
    expect(isExactMatch('ms, chalk and zod', ref('zod; chalk; ms'))).toBe(true);
    expect(isExactMatch('["zod", "chalk", "ms"]', ref('chalk, ms, zod'))).toBe(true);
  });
  test('an enumeration with one missing or one extra is wrong', () => {
    expect(isExactMatch('ms, chalk', ref('zod, chalk, ms'))).toBe(false);
    expect(isExactMatch('ms, chalk, zod, yaml', ref('zod, chalk, ms'))).toBe(false);
  });
  test('a name with "and" in it still equals itself', () =>
    expect(isExactMatch('Crosby and Nash', ref('Crosby and Nash'))).toBe(true));
  test('an empty answer is wrong, even for an empty reference', () => expect(isExactMatch('', ref(''))).toBe(false));
  test('thousands are not an enumeration', () => expect(listItems('12,000')).toBeUndefined());
});

test('F1 of SQuAD: two of three tokens right, both ways', () => {
  expect(f1('red green blue', ref('green blue black'))).toBeCloseTo(2 / 3, 12);
  expect(f1('', ref('x'))).toBe(0);
  expect(f1('x x', ref('x'))).toBeCloseTo(2 / 3, 12);
});

test('an answer stands in an observation only as whole tokens, and a list only with every item', () => {
  expect(contains('Licence: MIT.', ref('mit'))).toBe(true);
  expect(contains('permit it', ref('mit'))).toBe(false);
  expect(contains('depends on zod and ms', ref('ms, zod'))).toBe(true);
  expect(contains('depends on zod', ref('ms, zod'))).toBe(false);
});

describe('reward', () => {
  const turn = (malformed: boolean, observation = '') => ({ malformed, observation });
  const rule = { outcome: 'exact_match', format_penalty: 1 } as const;

  test('a malformed turn gets the penalty, the others have no position', () => {
    const turns = [turn(false, 'x'), turn(true, 'error'), turn(false)];
    expect(reward(score('MIT', turns, ref('MIT')), turns, 'answer', rule)).toEqual({
      outcome: 1,
      turns: [null, -1, null],
    });
  });
  test('a malformed last turn overrides the outcome', () => {
    const turns = [turn(false), turn(true)];
    expect(reward(score(null, turns, ref('MIT')), turns, 'max_turns', rule)).toEqual({
      outcome: -1,
      turns: [null, null],
    });
  });
  test('without a penalty a malformed trajectory is just wrong, and its score says it was malformed', () => {
    const turns = [turn(true), turn(true)];
    const graded = score(null, turns, ref('MIT'));
    expect(graded).toMatchObject({ exact_match: 0, format_valid: false });
    expect(reward(graded, turns, 'context', { ...rule, format_penalty: 0 })).toEqual({
      outcome: 0,
      turns: [null, null],
    });
  });
  test('F1 pays for a part', () => {
    const turns = [turn(false)];
    expect(
      reward(score('MIT License', turns, ref('MIT')), turns, 'answer', { outcome: 'f1', format_penalty: 1 }).outcome,
    ).toBeCloseTo(2 / 3, 12);
  });
});
