// Milvus has analyzers, but Milvus Lite knows neither stems nor stop words, and rankings must not depend on which of
// the two serves an index. So words are analysed here, and Milvus's full-text function gets their terms.
import { stemmer } from 'stemmer';

/** Raise when terms change: indexes made with another analysis are not comparable. */
export const ANALYZER_VERSION = 'english-1';

// Lucene's EnglishAnalyzer leaves these out (33 words).
const STOP_WORDS = new Set(
  (
    'a an and are as at be but by for if in into is it no not of on or such that the their then there these they this ' +
    'to was will with'
  ).split(' '),
);
const WORD = /[\p{L}\p{N}\p{M}]+(?:['’][\p{L}]+)*/gu;
// Scripts written without spaces: every two neighbouring characters are a term.
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/u;
const UNSPACED_RUNS =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}ー]+|[^\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}ー]+/gu;
const MAX_WORD = 64;
const STEMS_KEPT = 50_000;

const stems = new Map<string, string>();

/** Terms of a text in order, for BM25: lower case, possessives off, stop words out, Porter stems. */
export function analyze(text: string): string[] {
  const terms: string[] = [];
  for (const [raw] of text.toLowerCase().matchAll(WORD)) {
    if (UNSPACED.test(raw)) {
      for (const [run] of raw.matchAll(UNSPACED_RUNS)) terms.push(...(UNSPACED.test(run) ? bigrams(run) : [run]));
      continue;
    }
    const word = raw
      .replace(/['’]s$/, '')
      .replace(/['’]/g, '')
      .slice(0, MAX_WORD);
    if (word !== '' && !STOP_WORDS.has(word)) terms.push(stem(word));
  }
  return terms;
}

function bigrams(run: string): string[] {
  const characters = [...run];
  if (characters.length < 2) return characters;
  return characters.slice(1).map((character, index) => `${characters[index]}${character}`);
}

function stem(word: string): string {
  const known = stems.get(word);
  if (known !== undefined) return known;
  if (stems.size >= STEMS_KEPT) stems.clear();
  const made = /^[a-z]+$/.test(word) ? stemmer(word) : word;
  stems.set(word, made);
  return made;
}
