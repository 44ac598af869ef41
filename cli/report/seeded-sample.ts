import { createHash } from 'node:crypto';

/**
 * A sample of at most `size` items out of however many are offered, in the order they came. Which ones depends on their
 * ids and the seed alone, so the same run gives the same sample; memory holds two samples at most.
 */
export class SeededSample<Item> {
  readonly #size: number;
  readonly #seed: string;
  #entries: { rank: string; offered: number; item: Item }[] = [];
  #offered = 0;

  constructor(size: number, seed: string) {
    this.#size = size;
    this.#seed = seed;
  }

  get offered(): number {
    return this.#offered;
  }

  offer(id: string, item: Item): void {
    this.#offered += 1;
    const rank = createHash('sha256').update(`${this.#seed}/${id}`).digest('hex');
    this.#entries.push({ rank, offered: this.#offered, item });
    if (this.#entries.length > 2 * this.#size) this.#prune();
  }

  taken(): Item[] {
    this.#prune();
    return this.#entries.toSorted((a, b) => a.offered - b.offered).map(({ item }) => item);
  }

  #prune(): void {
    this.#entries.sort((a, b) => (a.rank < b.rank ? -1 : 1));
    this.#entries = this.#entries.slice(0, this.#size);
  }
}
