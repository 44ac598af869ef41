/**
 * What it means that a training question overlaps with a benchmark: the same question, the same evidence page, or a run
 * of n words in common. Words are letters and digits, without case (13 words: Brown et al. 2020, appendix C).
 */

export interface OverlapItem {
  id: string;
  question: string;
  /** Evidence pages. Only addresses of the web tell a page for good; ids of a corpus do not. */
  urls: readonly string[];
}

export interface Overlap {
  /** The set and the question of it that was met. */
  set: string;
  id: string;
  by: 'question' | 'url' | 'ngram';
}

const WORD = /[\p{L}\p{N}]+/gu;
const wordsOf = (text: string): string[] => text.normalize('NFKC').toLowerCase().match(WORD) ?? [];
const isWebPage = (url: string): boolean => /^https?:/i.test(url);

/** Questions of benchmark sets; memory grows with them, not with what is checked against them. */
export class BenchmarkQuestions {
  readonly #n: number;
  readonly #questions = new Map<string, Overlap>();
  readonly #urls = new Map<string, Overlap>();
  readonly #runs = new Map<string, Overlap>();

  constructor(n: number) {
    this.#n = n;
  }

  add(set: string, { id, question, urls }: OverlapItem): void {
    const words = wordsOf(question);
    this.#questions.set(words.join(' '), { set, id, by: 'question' });
    for (const run of this.#runsOf(words)) this.#runs.set(run, { set, id, by: 'ngram' });
    for (const url of urls.filter(isWebPage)) this.#urls.set(url, { set, id, by: 'url' });
  }

  /** The first overlap, or null. */
  find({ question, urls }: Omit<OverlapItem, 'id'>): Overlap | null {
    const words = wordsOf(question);
    const same = words.length > 0 ? this.#questions.get(words.join(' ')) : undefined;
    if (same !== undefined) return same;
    for (const url of urls) {
      const met = this.#urls.get(url);
      if (met !== undefined) return met;
    }
    for (const run of this.#runsOf(words)) {
      const met = this.#runs.get(run);
      if (met !== undefined) return met;
    }
    return null;
  }

  *#runsOf(words: readonly string[]): Generator<string> {
    for (let start = 0; start + this.#n <= words.length; start++) yield words.slice(start, start + this.#n).join(' ');
  }
}

/** What was found, in words; the first of them by name. */
export class OverlapReport {
  readonly #counts = new Map<string, number>();
  #first: string | null = null;
  checked = 0;
  met = 0;

  note(at: string, overlap: Overlap | null): void {
    this.checked += 1;
    if (overlap === null) return;
    this.met += 1;
    this.#first ??= `${at} (${overlap.set} ${overlap.id})`;
    const kind = `${overlap.set} by ${overlap.by}`;
    this.#counts.set(kind, (this.#counts.get(kind) ?? 0) + 1);
  }

  /** Null when nothing overlaps. */
  message(): string | null {
    if (this.#first === null) return null;
    const counts = [...this.#counts].map(([kind, count]) => `${kind} ${count}`).join(', ');
    return `${this.met} of ${this.checked} training questions overlap with benchmark sets (${counts}); the first is ${this.#first}`;
  }
}
