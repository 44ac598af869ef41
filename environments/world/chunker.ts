/** A run of a page's text, at most so many embedder tokens long. */
export interface Chunk {
  /** Position on the page, from 0. */
  ord: number;
  /** Half-open range of UTF-16 units in the page's text. */
  start: number;
  end: number;
  text: string;
}

export interface ChunkSize {
  tokens: number;
  overlap: number;
}

export type CountTokens = (text: string) => number;

interface Unit {
  start: number;
  end: number;
  tokens: number;
}

// After a sentence's end and its closing quotes, or at a line break. Lists, tables and code break at lines.
const BOUNDARY = /(?<=[.!?]["'”’)\]]{0,2})\s+(?=\S)|(?<=[。！？])|\n+/g;
// A word-piece tokenizer counts an endless word (base64, minified code) as one unknown token.
const MAX_CHARACTERS_PER_TOKEN = 8;

/**
 * Cut a page into chunks that end where sentences or lines do; neighbours share up to `overlap` tokens of whole
 * sentences. A sentence longer than a chunk is cut between words. Deterministic. A page of a title alone is one chunk.
 */
export function chunkPage(text: string, size: ChunkSize, countTokens: CountTokens): Chunk[] {
  const units = [...splitUnits(text, size.tokens, countTokens)];
  if (units.length === 0) return [{ ord: 0, start: 0, end: 0, text: '' }];

  const chunks: Chunk[] = [];
  for (let first = 0; first < units.length; ) {
    let last = first;
    let tokens = (units[first] as Unit).tokens;
    for (let next = units[last + 1]; next && tokens + next.tokens <= size.tokens; next = units[last + 1]) {
      tokens += next.tokens;
      last += 1;
    }
    const start = (units[first] as Unit).start;
    const end = (units[last] as Unit).end;
    chunks.push({ ord: chunks.length, start, end, text: text.slice(start, end) });
    if (last === units.length - 1) break;
    first = overlapStart(units, first, last, size.overlap);
  }
  return chunks;
}

/** What an embedder reads of a chunk: the title tells what a paragraph of pronouns is about. */
export function chunkWithTitle(title: string, text: string): string {
  const heading = title.slice(0, 160);
  return text.startsWith(heading) ? text : `${heading}\n${text}`;
}

/** First unit of the next chunk: as many units back as fit the overlap, but always one further than before. */
function overlapStart(units: readonly Unit[], first: number, last: number, overlap: number): number {
  let start = last + 1;
  let tokens = 0;
  while (start - 1 > first) {
    tokens += (units[start - 1] as Unit).tokens;
    if (tokens > overlap) break;
    start -= 1;
  }
  return start;
}

function* splitUnits(text: string, maxTokens: number, countTokens: CountTokens): Generator<Unit> {
  let from = 0;
  for (const { index, 0: gap } of text.matchAll(BOUNDARY)) {
    yield* splitLong(text, from, index, maxTokens, countTokens);
    from = index + gap.length;
  }
  yield* splitLong(text, from, text.length, maxTokens, countTokens);
}

/** A stretch between two boundaries: one unit, or several when it is too long. Iterative, since it may be megabytes. */
function* splitLong(
  text: string,
  from: number,
  to: number,
  maxTokens: number,
  countTokens: CountTokens,
): Generator<Unit> {
  const maxCharacters = maxTokens * MAX_CHARACTERS_PER_TOKEN;
  let start = from;
  while (to - start > maxCharacters) {
    const cut = cutPoint(text, start, to, maxCharacters);
    yield* halve(text, start, cut, maxTokens, countTokens);
    start = cut;
  }
  yield* halve(text, start, to, maxTokens, countTokens);
}

function* halve(text: string, from: number, to: number, maxTokens: number, countTokens: CountTokens): Generator<Unit> {
  let [start, end] = [from, to];
  while (start < end && isSpace(text, start)) start += 1;
  while (end > start && isSpace(text, end - 1)) end -= 1;
  if (start === end) return;
  const tokens = countTokens(text.slice(start, end));
  if (tokens <= maxTokens || end - start < 4) {
    yield { start, end, tokens: Math.max(tokens, 1) };
    return;
  }
  const middle = cutPoint(text, start, end, (end - start) >> 1);
  yield* halve(text, start, middle, maxTokens, countTokens);
  yield* halve(text, middle, end, maxTokens, countTokens);
}

/** The white space nearest before `start + offset`, else that place itself, never inside a surrogate pair. */
function cutPoint(text: string, start: number, end: number, offset: number): number {
  const target = start + offset;
  for (let at = target; at > start; at -= 1) if (isSpace(text, at)) return at;
  const unit = text.charCodeAt(target);
  const isInsidePair = unit >= 0xdc00 && unit <= 0xdfff;
  return isInsidePair && target + 1 < end ? target + 1 : target;
}

function isSpace(text: string, at: number): boolean {
  const unit = text.charCodeAt(at);
  return unit === 32 || (unit >= 9 && unit <= 13) || unit === 0xa0 || unit === 0x3000;
}
