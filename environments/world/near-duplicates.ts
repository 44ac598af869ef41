// MinHash (Broder 1997) with banding finds pairs that may be near duplicates; the exact Jaccard similarity of their
// word shingles decides. So bands may be loose: a false candidate costs time, never a page.
import { createHash } from 'node:crypto';

const SHINGLE_WORDS = 5;
const PERMUTATIONS = 128;
const WORD = /[\p{L}\p{N}]+/gu;

/** Hashes of all runs of five words; of the whole text when it has fewer. */
export function shingles(text: string): Set<number> {
  const words = [...text.toLowerCase().matchAll(WORD)].map(([word]) => hashText(word));
  const found = new Set<number>();
  for (let first = 0; first + SHINGLE_WORDS <= Math.max(words.length, SHINGLE_WORDS); first += 1) {
    let hash = 0;
    for (const word of words.slice(first, first + SHINGLE_WORDS)) hash = mix(Math.imul(hash, 31) ^ word);
    found.add(hash >>> 0);
  }
  return found;
}

export function jaccard(a: ReadonlySet<number>, b: ReadonlySet<number>): number {
  const [small, large] = a.size < b.size ? [a, b] : [b, a];
  let shared = 0;
  for (const item of small) if (large.has(item)) shared += 1;
  return shared / (a.size + b.size - shared || 1);
}

/**
 * Band keys of a set: two sets with Jaccard similarity s share at least one with probability 1 − (1 − sʳ)ᵇ, where
 * b bands of r rows are chosen so that at the threshold this is at least 0.98.
 */
export function bandKeys(set: ReadonlySet<number>, threshold: number): bigint[] {
  const signature = minHashes(set);
  const rows = rowsPerBand(threshold);
  const keys: bigint[] = [];
  for (let band = 0; (band + 1) * rows <= PERMUTATIONS; band += 1) {
    const bytes = new Uint8Array(signature.buffer, band * rows * 4, rows * 4);
    // The band's number is part of the key, so one column holds all bands.
    const digest = createHash('sha256').update(Uint8Array.of(band)).update(bytes).digest();
    keys.push(digest.readBigInt64LE(0));
  }
  return keys;
}

/** The most selective banding that still finds a pair at the threshold 98 times in 100. */
export function rowsPerBand(threshold: number): number {
  for (let rows = 16; rows > 1; rows -= 1) {
    const bands = Math.floor(PERMUTATIONS / rows);
    if (1 - (1 - threshold ** rows) ** bands >= 0.98) return rows;
  }
  return 1;
}

function minHashes(set: ReadonlySet<number>): Uint32Array {
  const least = new Uint32Array(PERMUTATIONS).fill(0xffffffff);
  for (const item of set) {
    for (let p = 0; p < PERMUTATIONS; p += 1) {
      const hash = mix(item ^ (SEEDS[p] as number)) >>> 0;
      if (hash < (least[p] as number)) least[p] = hash;
    }
  }
  return least;
}

/** Finaliser of MurmurHash3: each is a different bijection of 32 bits once a seed is mixed in. */
function mix(value: number): number {
  let hash = value;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

const SEEDS = Uint32Array.from({ length: PERMUTATIONS }, (_, index) => mix(Math.imul(index + 1, 0x9e3779b9)) >>> 0);

/** FNV-1a over UTF-16 units. */
function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let index = 0; index < text.length; index += 1) hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193);
  return hash;
}
