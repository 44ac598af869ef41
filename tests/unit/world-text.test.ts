import { describe, expect, test } from 'vitest';
import { analyze } from '../../environments/world/analyzer.ts';
import { chunkPage, chunkWithTitle } from '../../environments/world/chunker.ts';
import { bandKeys, jaccard, rowsPerBand, shingles } from '../../environments/world/near-duplicates.ts';
import { PageSelection, pageOrder } from '../../environments/world/page-selection.ts';

const words = (text: string): number => text.split(/\s+/).filter(Boolean).length;

describe('terms for BM25', () => {
  test('are lower-case Porter stems without stop words and possessives', () => {
    expect(analyze("The author's relational databases are NOT connected.")).toEqual([
      'author',
      'relat',
      'databas',
      'connect',
    ]);
  });

  test('keep numbers, versions apart, and words of other alphabets whole', () => {
    expect(analyze('v20.11.1 Москва Ærø')).toEqual(['v20', '11', '1', 'москва', 'ærø']);
  });

  test('of scripts without spaces are neighbouring pairs of characters', () => {
    expect(analyze('北京大学 API')).toEqual(['北京', '京大', '大学', 'api']);
    expect(analyze('京')).toEqual(['京']);
  });
});

describe('chunks of a page', () => {
  const sentences = Array.from({ length: 40 }, (_, i) => `Sentence number ${i} has seven words here.`);
  const text = sentences.join(' ');

  test('are slices of the page, within their size, and cover it', () => {
    const chunks = chunkPage(text, { tokens: 30, overlap: 8 }, words);
    let covered = 0;
    for (const { ord, start, end, text: slice } of chunks) {
      expect(slice).toBe(text.slice(start, end));
      expect(words(slice)).toBeLessThanOrEqual(30);
      expect(text.slice(covered, start).trim()).toBe('');
      expect(chunks[ord]?.start).toBe(start);
      covered = end;
    }
    expect(covered).toBe(text.length);
  });

  test('end at sentences and share whole sentences up to the overlap', () => {
    const [first, second] = chunkPage(text, { tokens: 30, overlap: 8 }, words);
    expect(first?.text).toBe(sentences.slice(0, 4).join(' '));
    expect(second?.text.startsWith('Sentence number 3 ')).toBe(true);
    expect(chunkPage(text, { tokens: 30, overlap: 0 }, words)[1]?.text.startsWith('Sentence number 4 ')).toBe(true);
  });

  test('cut a sentence that is too long between words, and an endless word anywhere but inside a character', () => {
    const long = Array.from({ length: 100 }, (_, i) => `w${i}`).join(' ');
    const chunks = chunkPage(long, { tokens: 10, overlap: 0 }, words);
    expect(chunks.map(({ text: slice }) => slice).join(' ')).toBe(long);
    const emoji = '😀'.repeat(5000);
    for (const { text: slice } of chunkPage(emoji, { tokens: 10, overlap: 0 }, words))
      expect(slice).not.toMatch(/\p{Surrogate}/u);
  });

  test('of megabytes without a space take no more than a moment', () => {
    const startedAt = performance.now();
    chunkPage('x'.repeat(3_000_000), { tokens: 200, overlap: 40 }, words);
    expect(performance.now() - startedAt).toBeLessThan(5000);
  });

  test('are one for a page of a title alone, and carry the title once', () => {
    expect(chunkPage('', { tokens: 10, overlap: 0 }, words)).toEqual([{ ord: 0, start: 0, end: 0, text: '' }]);
    expect(chunkWithTitle('Ada', 'She wrote.')).toBe('Ada\nShe wrote.');
    expect(chunkWithTitle('Ada', 'Ada wrote.')).toBe('Ada wrote.');
  });
});

describe('near duplicates', () => {
  const text = Array.from({ length: 300 }, (_, i) => `word${(i * 7919) % 1000}`);
  const original = shingles(text.join(' '));

  test('are measured by shared runs of five words', () => {
    // 10 words have 6 runs; another last word leaves 5 of them in common and makes 7 in all.
    const a = shingles('a b c d e f g h i j');
    expect(a.size).toBe(6);
    expect(jaccard(a, shingles('a b c d e f g h i x'))).toBeCloseTo(5 / 7);
    expect(shingles('two words').size).toBe(1);
  });

  test('share a band when alike and none when strangers', () => {
    const alike = shingles([...text.slice(0, 295), 'other', 'last', 'words'].join(' '));
    const stranger = shingles(Array.from({ length: 300 }, (_, i) => `other${i}`).join(' '));
    const bands = new Set(bandKeys(original, 0.9));
    expect(jaccard(original, alike)).toBeGreaterThan(0.9);
    expect(bandKeys(alike, 0.9).some((band) => bands.has(band))).toBe(true);
    expect(bandKeys(stranger, 0.9).some((band) => bands.has(band))).toBe(false);
  });

  test('at the threshold are found 98 times in 100 by the bands chosen', () => {
    for (const threshold of [0.5, 0.7, 0.8, 0.9, 0.95]) {
      const rows = rowsPerBand(threshold);
      expect(1 - (1 - threshold ** rows) ** Math.floor(128 / rows)).toBeGreaterThanOrEqual(0.98);
    }
    expect(rowsPerBand(0.9)).toBeGreaterThan(rowsPerBand(0.5));
  });
});

describe('the selection under a limit', () => {
  const urls = Array.from({ length: 500 }, (_, i) => `https://a.org/${i}`);
  const select = (order: readonly string[], target: number): string[] => {
    const selection = new PageSelection(target);
    for (const url of order) if (selection.wants(pageOrder(url))) selection.add({ order: pageOrder(url), weight: 3 });
    return [...selection.finish().taken.keys()].sort();
  };

  test('is the same in whatever order pages come, and a larger one contains a smaller one', () => {
    const forwards = select(urls, 60);
    expect(forwards).toHaveLength(20);
    expect(select([...urls].reverse(), 60)).toEqual(forwards);
    expect(select(urls, 90)).toEqual(expect.arrayContaining(forwards));
    expect(forwards).toEqual(urls.map(pageOrder).sort().slice(0, 20));
  });

  test('knows whether anything was left out', () => {
    const all = new PageSelection(10_000);
    for (const url of urls) if (all.wants(pageOrder(url))) all.add({ order: pageOrder(url), weight: 3 });
    expect(all.finish()).toMatchObject({ isComplete: true });
    const some = new PageSelection(10);
    for (const url of urls) if (some.wants(pageOrder(url))) some.add({ order: pageOrder(url), weight: 3 });
    expect(some.finish()).toMatchObject({ isComplete: false });
  });
});
