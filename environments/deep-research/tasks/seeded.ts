import { createHash } from 'node:crypto';

/** A number in [0, 1) that depends on the text alone. */
export function hashFraction(text: string): number {
  return createHash('sha256').update(text).digest().readUIntBE(0, 6) / 2 ** 48;
}

/** Random numbers in [0, 1), the same sequence for the same name (mulberry32). */
export function seededRandom(name: string): () => number {
  let state = createHash('sha256').update(name).digest().readUInt32BE(0);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Into which part of [0, 1) a name falls; the same name always into the same one. */
export function splitOf(name: string, splits: Readonly<Record<string, number>>, seed: number): string {
  const names = Object.keys(splits).sort();
  const total = names.reduce((sum, split) => sum + (splits[split] as number), 0);
  let left = hashFraction(`${seed}/split/${name}`) * total;
  for (const split of names) {
    left -= splits[split] as number;
    if (left < 0) return split;
  }
  return names.at(-1) as string;
}
