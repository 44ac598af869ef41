import { describe, expect, test } from 'vitest';
import { coalesce } from '../../environments/world/coalesce.ts';
import { fuse, mergeQueries, pagesOfHits, type RankedPage } from '../../environments/world/fusion.ts';
import { cutToGoal, shareBudget, splitPassages } from '../../environments/world/passages.ts';
import { ndcgAt, recallAt } from '../../environments/world/retrieval-metrics.ts';
import { snippet } from '../../environments/world/world.ts';

const page = (url: string, score = 0): RankedPage => ({ url, title: url, text: `text of ${url}`, score });
const urls = (pages: readonly RankedPage[]): string[] => pages.map(({ url }) => url);
const words = (text: string): number => text.split(/\s+/).filter(Boolean).length;

describe('fusion', () => {
  test('by reciprocal ranks adds 1 / (k + rank), by hand', () => {
    const fused = fuse([page('a'), page('b')], [page('b'), page('c')], { kind: 'rrf', k: 60 }, 'cosine');
    expect(urls(fused)).toEqual(['b', 'a', 'c']);
    expect(fused.map(({ score }) => score)).toEqual([1 / 62 + 1 / 61, 1 / 61, 1 / 62]);
  });

  test('by weights adds scores brought to [0, 1] as Milvus does', () => {
    const fused = fuse(
      [page('a', 0.5)],
      [page('a', 1), page('b', 1)],
      { kind: 'weighted', dense: 1, sparse: 0.7 },
      'cosine',
    );
    expect(fused[0]?.score).toBeCloseTo(0.75 + 0.7 * 0.5);
    expect(fused[1]?.score).toBeCloseTo(0.7 * 0.5);
  });

  test('ranks a page by its best chunk and shows the chunk of the side that ranks it higher', () => {
    const hit = (url: string, ord: number, score: number) => ({ url, title: url, ord, text: `${url}#${ord}`, score });
    const dense = pagesOfHits([hit('a', 3, 0.9), hit('a', 1, 0.8), hit('b', 0, 0.7)]);
    expect(dense.map(({ text }) => text)).toEqual(['a#3', 'b#0']);
    const fused = fuse(dense, pagesOfHits([hit('b', 2, 9), hit('a', 0, 8)]), { kind: 'rrf', k: 60 }, 'cosine');
    expect(fused.map(({ text }) => text)).toEqual(['a#3', 'b#2']);
  });

  test('of several queries brings the first page of each in before the second of any', () => {
    const rrf = { kind: 'rrf', k: 60 } as const;
    const first = fuse([page('a1'), page('a2')], [page('a1'), page('a2')], rrf, 'cosine');
    const second = fuse([page('b1'), page('a2')], [page('b1'), page('b2')], rrf, 'cosine');
    expect(urls(mergeQueries([first, second]))).toEqual(['a1', 'b1', 'a2', 'b2']);
  });
});

describe('retrieval metrics', () => {
  test('nDCG: gains over log2(rank + 1), against the best order, by hand', () => {
    const relevant = new Map([
      ['a', 2],
      ['b', 1],
    ]);
    // (1 / log2(2) + 2 / log2(4)) / (2 / log2(2) + 1 / log2(3)) = (1 + 1) / (2 + 0.63093)
    expect(ndcgAt(['b', 'x', 'a'], relevant, 10)).toBeCloseTo(2 / (2 + 1 / Math.log2(3)), 10);
    expect(ndcgAt(['a', 'b'], relevant, 10)).toBe(1);
    expect(ndcgAt(['x', 'a'], relevant, 1)).toBe(0);
  });

  test('recall is the share of relevant pages among the first k', () => {
    const relevant = new Map([
      ['a', 1],
      ['b', 1],
      ['c', 0],
    ]);
    expect(recallAt(['x', 'a', 'b'], relevant, 2)).toBe(0.5);
    expect(recallAt(['c', 'a', 'b'], relevant, 5)).toBe(1);
  });
});

describe('a visit', () => {
  const facts = 'License: MIT\nVersion: 4.1.0\nAuthor: Ada Lovelace';
  const filler = Array.from(
    { length: 60 },
    (_, i) => `Paragraph ${i} describes options of the parser and its plugins at length.`,
  );
  const text = [
    facts,
    ...filler.slice(0, 40),
    '## History',
    'The engine was first released in 1843 for the Analytical Engine.',
    ...filler.slice(40),
  ].join('\n\n');

  test('returns a page whole when it fits', () => {
    expect(cutToGoal('Short page.', 'anything', 10, words)).toEqual({ text: 'Short page.', truncated: false });
  });

  test('returns what matches the goal, in the order of the page, within the budget, gaps marked', () => {
    const cut = cutToGoal(text, 'When was the engine first released, and under which license?', 60, words);
    expect(cut.truncated).toBe(true);
    expect(cut.text).toContain('License: MIT');
    expect(cut.text).toContain('released in 1843');
    expect(cut.text.indexOf('License')).toBeLessThan(cut.text.indexOf('1843'));
    expect(cut.text).toContain('[…]');
    expect(words(cut.text)).toBeLessThanOrEqual(60);
  });

  test('without a goal returns the beginning', () => {
    expect(cutToGoal(text, '', 30, words).text.startsWith('License: MIT')).toBe(true);
  });

  test('of one endless line still keeps to the budget', () => {
    const cut = cutToGoal('word '.repeat(5000), 'word', 8, words);
    expect(words(cut.text)).toBeLessThanOrEqual(8);
    expect(cut.text).not.toBe('');
  });

  test('of a large page takes milliseconds', () => {
    const large = Array.from({ length: 5000 }, (_, i) => `Line ${i} about parsers, engines and ${i % 97} things.`).join(
      '\n\n',
    );
    cutToGoal(large, 'engines', 256, words);
    const before = process.cpuUsage();
    cutToGoal(large, 'What does line 4711 say of engines?', 256, words);
    const { user, system } = process.cpuUsage(before);
    expect((user + system) / 1000).toBeLessThan(250);
  });

  test('cuts passages that together are the page', () => {
    const passages = splitPassages(text);
    let covered = 0;
    for (const { start, end } of passages) {
      expect(text.slice(covered, start).trim()).toBe('');
      covered = end;
    }
    expect(text.slice(covered).trim()).toBe('');
    expect(passages.map(({ start, end }) => text.slice(start, end))).toContain(
      '## History\n\nThe engine was first released in 1843 for the Analytical Engine.',
    );
  });

  test('of several pages gives short ones what they need and long ones equal parts of the rest', () => {
    expect(shareBudget([10, 500, 900], 210)).toEqual([10, 100, 100]);
    expect(shareBudget([10, 20], 210)).toEqual([10, 20]);
    expect(shareBudget([900, 900, 900], 100)).toEqual([33, 33, 34]);
  });
});

test('a snippet shows where the words of the query are densest', () => {
  const filler = 'Nothing of note stands here at all. '.repeat(20);
  const shown = snippet(
    `${filler}The licence of the parser is Apache-2.0 since version three. ${filler}`,
    'licence of parsers',
  );
  expect(shown).toContain('licence of the parser is Apache-2.0');
  expect(shown.length).toBeLessThan(320);
});

describe('coalescing', () => {
  test('joins what arrives while a batch is on its way, and gives each its own result', async () => {
    const batches: string[][] = [];
    const ask = coalesce(async (_key, items: readonly string[]) => {
      batches.push([...items]);
      await new Promise((resolve) => setTimeout(resolve, 5));
      return items.map((item) => item.toUpperCase());
    }, 2);
    const first = ask('k', 'a');
    await new Promise((resolve) => setTimeout(resolve, 1));
    const rest = Promise.all(['b', 'c', 'd'].map((item) => ask('k', item)));
    expect(await first).toBe('A');
    expect(await rest).toEqual(['B', 'C', 'D']);
    expect(batches).toEqual([['a'], ['b', 'c'], ['d']]);
  });

  test('a batch that fails fails its own requests only', async () => {
    const ask = coalesce(async (_key, items: readonly number[]) => {
      if (items.includes(1)) throw new Error('down');
      return items;
    }, 1);
    await expect(ask('k', 1)).rejects.toThrow('down');
    expect(await ask('k', 2)).toBe(2);
  });
});
