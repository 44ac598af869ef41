import { FIELDS, type Field, type FieldValue, storedField } from './fields.ts';
import { hashFraction, splitOf } from './seeded.ts';
import type { Ecosystem } from './templates.ts';

/** A page with the facts its source knew of it. */
export interface FactPage {
  url: string;
  facts: Readonly<Record<string, unknown>>;
}

/** A package as task generation sees it. */
export interface Package {
  url: string;
  name: string;
  ecosystem: Ecosystem;
  values: Partial<Record<Field, FieldValue>>;
}

/**
 * A sample of the packages of one split: those whose hashes are smallest, so it does not depend on the order of
 * the pages, and holds no more than its capacity however large the corpus is.
 */
export class FactPool {
  readonly #seed: number;
  readonly #capacity: number;
  #packages: { rank: number; package: Package }[] = [];

  constructor(seed: number, capacity: number) {
    this.#seed = seed;
    this.#capacity = capacity;
  }

  add(page: Package): void {
    this.#packages.push({ rank: hashFraction(`${this.#seed}/sample/${page.url}`), package: page });
    if (this.#packages.length > 2 * this.#capacity) this.#prune();
  }

  #prune(): void {
    this.#packages.sort((a, b) => a.rank - b.rank || (a.package.url < b.package.url ? -1 : 1));
    this.#packages.length = Math.min(this.#packages.length, this.#capacity);
  }

  packages(): Package[] {
    this.#prune();
    return this.#packages.map((entry) => entry.package);
  }
}

export function packageOf({ url, facts }: FactPage): Package | null {
  const { name, ecosystem } = facts;
  if (typeof name !== 'string' || (ecosystem !== 'npm' && ecosystem !== 'python')) return null;
  const values: Package['values'] = {};
  for (const field of FIELDS) {
    const value = storedField(facts, field);
    if (value) values[field] = value;
  }
  return { url, name, ecosystem, values };
}

/** Packages that share a name in two ecosystems fall into the same split. */
export function splitOfPackage(name: string, splits: Readonly<Record<string, number>>, seed: number): string {
  return splitOf(name.toLowerCase().replace(/[-_.]+/g, '-'), splits, seed);
}

/** The page of another package of the same ecosystem. */
export function siblingUrl({ url, name }: Package, sibling: string): string {
  return `${url.slice(0, url.length - name.length)}${sibling}`;
}
