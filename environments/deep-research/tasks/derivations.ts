/**
 * How an answer follows from what the pages say. One function serves the generator, the check that every page is
 * needed, and the scripted expert; each gives null where the values make no good question.
 */
import type { FieldValue } from './fields.ts';

export interface Answer {
  text: string;
  /** Other orders of a list: each counts as correct. */
  aliases: string[];
}

export interface Derivation {
  answer(values: readonly FieldValue[], names: readonly string[]): Answer | null;
  /** How the expert explains the last step, from what it read. */
  explain(answer: Answer): string;
  /**
   * Whether the same rule can be applied to fewer pages. If so, a page without which it gives the same answer is
   * not evidence; else an answer from fewer pages would be a guess.
   */
  worksOnFewer: boolean;
  /** Whether it uses what the pages say or only how many items they list. */
  reads: 'text' | 'count';
}

/** Longer lists have too many orders to accept each of them. */
const MAX_LIST = 4;

function exactly(text: string): Answer {
  return { text, aliases: [] };
}

function anyOrder(items: readonly string[]): Answer | null {
  if (items.length === 0 || items.length > MAX_LIST || items.some((item) => item.includes(','))) return null;
  const [text, ...aliases] = permutations(items).map((order) => order.join(', ')) as [string, ...string[]];
  return { text, aliases };
}

function permutations<T>(items: readonly T[]): T[][] {
  if (items.length <= 1) return [[...items]];
  return items.flatMap((item, index) => permutations(items.toSpliced(index, 1)).map((rest) => [item, ...rest]));
}

/** Counts of all pages, or null if one of them states none. */
function countsOf(values: readonly FieldValue[]): number[] | null {
  const counts = values.map(({ count }) => count);
  return counts.includes(null) ? null : (counts as number[]);
}

function ofCounts(rule: (counts: number[]) => number | null): Derivation['answer'] {
  return (values) => {
    const counts = countsOf(values);
    const result = counts && counts.length > 0 ? rule(counts) : null;
    return result === null ? null : exactly(String(result));
  };
}

const add = (counts: readonly number[]) => counts.reduce((sum, count) => sum + count, 0);
const ascending = (counts: readonly number[]) => counts.toSorted((a, b) => a - b);

/** The lower bound of a range with nothing else in it, such as `>=18`, `>= 18.12.0`. */
function lowerBound(range: string): number[] | null {
  const match = /^>=\s*v?(\d+)(?:\.(\d+))?(?:\.(\d+))?$/.exec(range);
  return match ? match.slice(1).map((part) => Number(part ?? 0)) : null;
}

function compareVersions(a: readonly number[], b: readonly number[]): number {
  const difference = a.findIndex((part, index) => part !== b[index]);
  return difference < 0 ? 0 : (a[difference] as number) - (b[difference] as number);
}

export const derivations = {
  /** The one value looked for, if it is short and plain. */
  value: {
    worksOnFewer: false,
    reads: 'text',
    answer: ([value]) => (value && !value.text.includes(',') ? exactly(value.text) : null),
    explain: () => '',
  },
  /** Both values, in the order asked. */
  pair: {
    worksOnFewer: true,
    reads: 'text',
    answer: (values) =>
      values.every(({ text }) => !/,| and /.test(text)) ? exactly(values.map(({ text }) => text).join(' and ')) : null,
    explain: ({ text }) => `Together: ${text}.`,
  },
  sum: {
    worksOnFewer: true,
    reads: 'count',
    answer: ofCounts((counts) => add(counts)),
    explain: ({ text }) => `The sum is ${text}.`,
  },
  /** Every item of the lists, once. */
  union: {
    worksOnFewer: true,
    reads: 'text',
    answer: (values) =>
      values.every(({ items }) => items !== null)
        ? anyOrder([...new Set(values.flatMap(({ items }) => items as string[]))])
        : null,
    explain: ({ text }) => `All of them: ${text}.`,
  },
  /** The different values; a page that only repeats another's makes no good question. */
  distinct: {
    worksOnFewer: true,
    reads: 'text',
    answer: (values) =>
      new Set(values.map(({ text }) => text)).size === values.length ? anyOrder(values.map(({ text }) => text)) : null,
    explain: ({ text }) => `All of them: ${text}.`,
  },
  /** Names of some, but not all, of the packages. */
  without_items: {
    worksOnFewer: false,
    reads: 'count',
    answer(values, names) {
      const chosen = names.filter((_, index) => values[index]?.count === 0);
      return chosen.length === names.length ? null : anyOrder(chosen);
    },
    explain: ({ text }) => `Without dependencies: ${text}.`,
  },
  /** The value on the second page, which only the first page leads to. */
  second: {
    worksOnFewer: false,
    reads: 'text',
    answer([first, second]) {
      if (first?.items?.length !== 1 || !second || second.text.includes(',')) return null;
      return exactly(second.text);
    },
    explain: () => '',
  },
  /** The one item that two longer lists have in common. */
  shared: {
    worksOnFewer: false,
    reads: 'text',
    answer([first, second]) {
      if (!first?.items || !second?.items || first.items.length < 2 || second.items.length < 2) return null;
      const common = first.items.filter((item) => second.items?.includes(item));
      return common.length === 1 ? exactly(common[0] as string) : null;
    },
    explain: ({ text }) => `Both have ${text}.`,
  },
  /** The range with the higher lower bound, where both are plain lower bounds and differ. */
  newer: {
    worksOnFewer: false,
    reads: 'text',
    answer([first, second]) {
      const [a, b] = [first, second].map((value) => (value ? lowerBound(value.text) : null));
      if (!a || !b || compareVersions(a, b) === 0) return null;
      return exactly(((compareVersions(a, b) > 0 ? first : second) as FieldValue).text);
    },
    explain: ({ text }) => `The newer is ${text}.`,
  },
  largest: {
    worksOnFewer: false,
    reads: 'count',
    answer: ofCounts((counts) => (new Set(counts).size === counts.length ? Math.max(...counts) : null)),
    explain: ({ text }) => `The largest is ${text}.`,
  },
  median: {
    worksOnFewer: false,
    reads: 'count',
    answer: ofCounts((counts) => (new Set(counts).size === 3 ? (ascending(counts)[1] as number) : null)),
    explain: ({ text }) => `The middle one is ${text}.`,
  },
  /** Only where the average is a whole number, so that it has one spelling. */
  mean: {
    worksOnFewer: true,
    reads: 'count',
    answer: ofCounts((counts) =>
      new Set(counts).size > 1 && add(counts) % counts.length === 0 ? add(counts) / counts.length : null,
    ),
    explain: ({ text }) => `The average is ${text}.`,
  },
  range: {
    worksOnFewer: false,
    reads: 'count',
    answer: ofCounts((counts) =>
      new Set(counts).size === counts.length ? Math.max(...counts) - Math.min(...counts) : null,
    ),
    explain: ({ text }) => `The difference is ${text}.`,
  },
} satisfies Record<string, Derivation>;
