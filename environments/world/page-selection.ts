import { createHash } from 'node:crypto';

/**
 * Where a page stands in the order in which a limit takes pages: by hash of its URL, so that no source is favoured,
 * the same pages are taken on every machine, and a larger limit contains a smaller one.
 */
export function pageOrder(url: string): string {
  return createHash('sha256').update(url).digest('hex').slice(0, 32);
}

interface Entry {
  order: string;
  weight: number;
}

/**
 * The first pages in that order whose weights (1, or chunks) reach a target, found in one pass over pages in any
 * order. Holds only what may still be taken.
 */
export class PageSelection {
  readonly #target: number;
  #entries = new Map<string, number>();
  #weight = 0;
  #last: string | null = null;
  #isComplete = true;

  constructor(target: number) {
    this.#target = target;
  }

  /** Whether a page may be among the first; weighing others would be lost work. */
  wants(order: string): boolean {
    const isWanted = (this.#last === null || order <= this.#last) && !this.#entries.has(order);
    if (!isWanted && !this.#entries.has(order)) this.#isComplete = false;
    return isWanted;
  }

  add({ order, weight }: Entry): void {
    this.#entries.set(order, weight);
    this.#weight += weight;
    if (this.#weight >= 2 * this.#target) this.#trim();
  }

  /** Orders taken → weight, and whether that is every page there is. */
  finish(): { taken: ReadonlyMap<string, number>; isComplete: boolean } {
    this.#trim();
    return { taken: this.#entries, isComplete: this.#isComplete };
  }

  #trim(): void {
    const sorted = [...this.#entries].sort(([a], [b]) => (a < b ? -1 : 1));
    let weight = 0;
    const kept = new Map<string, number>();
    for (const [order, value] of sorted) {
      if (weight >= this.#target) {
        this.#isComplete = false;
        break;
      }
      kept.set(order, value);
      weight += value;
      this.#last = order;
    }
    if (this.#isComplete) this.#last = null;
    this.#entries = kept;
    this.#weight = weight;
  }
}
