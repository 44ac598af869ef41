import { describe, expect, test } from 'vitest';
import { type Amounts, moneyOf, mostOf, NOTHING, overBound } from '../../activities/budget.ts';

const PRICES = { currency: 'USD', gpu_hour: 2, cpu_hour: 0.05, million_tokens: 0.5, thousand_tool_calls: 1.5 };
const amounts = (some: Partial<Amounts>): Amounts => ({ ...NOTHING, ...some });

test('money is the sum over what has a price', () => {
  const used = amounts({ tokens: 2_000_000, tool_calls: 3_000, gpu_hours: 4, cpu_hours: 10 });
  expect(moneyOf(used, PRICES)).toBeCloseTo(1 + 4.5 + 8 + 0.5, 12);
});

describe('a bound', () => {
  test('may be reached and not passed', () => {
    const used = amounts({ tool_calls: 60 });
    expect(overBound(used, amounts({ tool_calls: 40 }), { tool_calls: 100 }, PRICES)).toBeNull();
    expect(overBound(used, amounts({ tool_calls: 41 }), { tool_calls: 100 }, PRICES)).toBe(
      'tool_calls 60 of 100, the next batch may take 41',
    );
  });

  test('of money counts tokens and calls that are not sampled yet', () => {
    const more = amounts({ tokens: 1_000_000 });
    expect(overBound(amounts({ tool_calls: 1_000 }), more, { money: 2 }, PRICES)).toBeNull();
    expect(overBound(amounts({ tool_calls: 1_000 }), more, { money: 1.9 }, PRICES)).toBe(
      'money 1.5 of 1.9, the next batch may take 0.5',
    );
  });

  test('of GPU-hours stops when it is reached, for time has no upper bound beforehand', () => {
    expect(overBound(amounts({ gpu_hours: 2.9 }), NOTHING, { gpu_hours: 3 }, PRICES)).toBeNull();
    expect(overBound(amounts({ gpu_hours: 3 }), NOTHING, { gpu_hours: 3 }, PRICES)).toBe('gpu_hours 3 of 3');
  });

  test('of zero GPU-hours stops nothing where no GPU is used', () => {
    expect(overBound(amounts({ cpu_hours: 9 }), NOTHING, { gpu_hours: 0 }, PRICES)).toBeNull();
  });

  test('of tokens that is reached lets through what samples none', () => {
    expect(overBound(amounts({ tokens: 100 }), NOTHING, { tokens: 100 }, PRICES)).toBeNull();
  });
});

test('a batch takes at most every turn at its longest, and no more than the context holds', () => {
  const agent = { tools: ['search', 'visit'], max_turns: 4, max_turn_tokens: 100, context_management: 'none' };
  expect(mostOf([{ context_length: 4096, agent }])).toEqual(amounts({ tokens: 500, tool_calls: 4 }));
  const closedBook = { ...agent, tools: [], context_management: 'none', max_turns: 1 };
  expect(
    mostOf([
      { context_length: 300, agent },
      { context_length: 300, agent: closedBook },
    ]),
  ).toEqual(amounts({ tokens: 500, tool_calls: 4 }));
});
