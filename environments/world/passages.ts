import { analyze } from './analyzer.ts';

export interface Passage {
  start: number;
  end: number;
}

export interface CutPage {
  text: string;
  truncated: boolean;
}

type CountTokens = (text: string) => number;

const GAP = '\n[…]\n';
const PASSAGE_CHARACTERS = 320;
// A page's beginning says what it is about, so among passages that match equally it comes first.
const FIRST_BONUS = 0.35;
const K1 = 1.2;
const B = 0.5;
// No tokenizer makes fewer tokens than this; a page longer by far need not be counted to know that it is too long.
const MAX_CHARACTERS_PER_TOKEN = 12;

/**
 * A page cut to a budget: whole when it fits, else the passages that match the goal best, in the page's order, with
 * gaps marked. Scored by BM25 over the page's own passages: it takes a millisecond, where embedding a page takes
 * seconds.
 */
export function cutToGoal(text: string, goal: string, maxTokens: number, countTokens: CountTokens): CutPage {
  if (text.length <= maxTokens * MAX_CHARACTERS_PER_TOKEN && countTokens(text) <= maxTokens)
    return { text, truncated: false };
  const passages = splitPassages(text);
  const scores = scorePassages(text, passages, goal);
  const ranked = passages
    .map((_, index) => index)
    .sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);

  const chosen: number[] = [];
  const gapTokens = countTokens(GAP);
  let left = maxTokens - 2 * gapTokens;
  for (const index of ranked) {
    if (left <= gapTokens) break;
    const passage = passageText(text, passages[index]);
    const cost = passage.length > left * MAX_CHARACTERS_PER_TOKEN ? Infinity : countTokens(passage) + gapTokens;
    if (cost > left) continue;
    chosen.push(index);
    left -= cost;
  }
  // Tokens of a whole are not exactly the sum over its parts.
  for (; chosen.length > 0; chosen.pop()) {
    const joined = joinPassages(text, passages, chosen);
    if (countTokens(joined) <= maxTokens) return { text: joined, truncated: chosen.length < passages.length };
  }
  return { text: cutPrefix(passageText(text, passages[ranked[0] ?? 0]), maxTokens, countTokens), truncated: true };
}

/** Share a budget over pages: short ones get what they need, the others equal parts of the rest. */
export function shareBudget(needs: readonly number[], budget: number): number[] {
  const shares = new Array<number>(needs.length).fill(0);
  const byNeed = needs.map((_, index) => index).sort((a, b) => (needs[a] as number) - (needs[b] as number));
  let left = budget;
  byNeed.forEach((index, position) => {
    const share = Math.min(needs[index] as number, Math.floor(left / (needs.length - position)));
    shares[index] = share;
    left -= share;
  });
  return shares;
}

/** Lines of one paragraph, list or table together up to a few hundred characters; longer lines cut at sentences. */
export function splitPassages(text: string): Passage[] {
  const passages: Passage[] = [];
  let open: (Passage & { isHeading: boolean }) | null = null;
  let isAfterBlank = false;
  for (const { index: start, 0: line } of text.matchAll(/^.*$/gm)) {
    if (line.trim() === '') {
      isAfterBlank = true;
      continue;
    }
    const end = start + line.length;
    const isHeading = /^#{1,6}\s/.test(line);
    // A heading stays with what follows it.
    const joins: boolean =
      open !== null && !isHeading && (!isAfterBlank || open.isHeading) && end - open.start <= PASSAGE_CHARACTERS;
    isAfterBlank = false;
    if (open !== null && joins) {
      open = { start: open.start, end, isHeading: false };
      continue;
    }
    if (open !== null) passages.push({ start: open.start, end: open.end });
    open = line.length <= PASSAGE_CHARACTERS ? { start, end, isHeading } : null;
    if (open === null) passages.push(...splitLine(text, start, end));
  }
  if (open !== null) passages.push({ start: open.start, end: open.end });
  return passages;
}

function splitLine(text: string, from: number, to: number): Passage[] {
  const passages: Passage[] = [];
  let start = from;
  while (to - start > PASSAGE_CHARACTERS) {
    const window = text.slice(start, start + PASSAGE_CHARACTERS);
    const sentence = Math.max(
      window.lastIndexOf('. '),
      window.lastIndexOf('? '),
      window.lastIndexOf('! '),
      window.lastIndexOf('。'),
    );
    const space = window.lastIndexOf(' ');
    const length = sentence > PASSAGE_CHARACTERS / 3 ? sentence + 1 : space > 0 ? space : PASSAGE_CHARACTERS;
    passages.push({ start, end: start + length });
    start += length;
    while (text[start] === ' ' && start < to) start += 1;
  }
  if (start < to) passages.push({ start, end: to });
  return passages;
}

function scorePassages(text: string, passages: readonly Passage[], goal: string): number[] {
  const wanted = new Set(analyze(goal));
  const terms = passages.map((passage) => analyze(passageText(text, passage)));
  const meanLength = terms.reduce((sum, { length }) => sum + length, 0) / Math.max(1, terms.length) || 1;
  const documentFrequency = new Map<string, number>();
  const counts = terms.map((words) => {
    const found = new Map<string, number>();
    for (const word of words) if (wanted.has(word)) found.set(word, (found.get(word) ?? 0) + 1);
    for (const word of found.keys()) documentFrequency.set(word, (documentFrequency.get(word) ?? 0) + 1);
    return found;
  });
  return counts.map((found, index) => {
    const norm = K1 * (1 - B + (B * (terms[index]?.length ?? 0)) / meanLength);
    let score = index === 0 ? FIRST_BONUS : 0;
    for (const [word, frequency] of found) {
      const df = documentFrequency.get(word) as number;
      const idf = Math.log(1 + (passages.length - df + 0.5) / (df + 0.5));
      score += (idf * frequency * (K1 + 1)) / (frequency + norm);
    }
    return score;
  });
}

function joinPassages(text: string, passages: readonly Passage[], chosen: readonly number[]): string {
  let joined = '';
  let previous = -1;
  for (const index of [...chosen].sort((a, b) => a - b)) {
    const { start, end } = passages[index] as Passage;
    const isNext = index === previous + 1;
    if (previous >= 0 && isNext) joined += text.slice((passages[previous] as Passage).end, start);
    else if (joined !== '' || index > 0) joined += joined === '' ? '[…]\n' : GAP;
    joined += text.slice(start, end);
    previous = index;
  }
  return previous < passages.length - 1 ? `${joined}\n[…]` : joined;
}

function passageText(text: string, passage: Passage | undefined): string {
  return passage ? text.slice(passage.start, passage.end) : '';
}

/** The longest prefix, in whole words, within a budget. */
function cutPrefix(text: string, maxTokens: number, countTokens: CountTokens): string {
  const words = text.split(/(?<=\s)/);
  let low = 0;
  let high = words.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (countTokens(words.slice(0, middle).join('')) <= maxTokens) low = middle;
    else high = middle - 1;
  }
  return words.slice(0, low).join('').trimEnd();
}
