/** Tasks chosen so that their kinds have given shares. */

/**
 * The kind that is due next, for ever: the one with the largest `share / (2 · taken + 1)`, ties by name
 * (Sainte-Laguë's method). So every beginning has the shares as nearly as whole numbers can, and has them exactly
 * where they come out whole; and no longer beginning has fewer of a kind than a shorter one, as it could have with
 * largest remainders.
 */
function* dueKinds(mix: Readonly<Record<string, number>>): Generator<string> {
  const kinds = Object.keys(mix)
    .filter((kind) => (mix[kind] as number) > 0)
    .sort()
    .map((kind) => ({ kind, share: mix[kind] as number, taken: 0 }));
  const claim = ({ share, taken }: { share: number; taken: number }): number => share / (2 * taken + 1);
  while (kinds.length > 0) {
    const next = kinds.reduce((due, other) => (claim(other) > claim(due) ? other : due));
    next.taken += 1;
    yield next.kind;
  }
}

/**
 * As many items as have the mix, each kind in the order given: ends where the kind that is due has no more, so that
 * what is scarce decides how many there are. Its beginnings have the mix, too.
 */
export function inMix<T>(items: readonly T[], mix: Readonly<Record<string, number>>, kindOf: (item: T) => string): T[] {
  const byKind = new Map<string, T[]>();
  for (const item of items) {
    const members = byKind.get(kindOf(item));
    if (members === undefined) byKind.set(kindOf(item), [item]);
    else members.push(item);
  }
  const queues = new Map([...byKind].map(([kind, members]) => [kind, members.values()]));
  const chosen: T[] = [];
  for (const kind of dueKinds(mix)) {
    const next = queues.get(kind)?.next();
    if (next === undefined || next.done) return chosen;
    chosen.push(next.value);
  }
  return chosen;
}

/** How many of each kind `total` items of the mix are. */
export function countsInMix(total: number, mix: Readonly<Record<string, number>>): Record<string, number> {
  const counts = Object.fromEntries(Object.keys(mix).map((kind) => [kind, 0]));
  let left = total;
  for (const kind of dueKinds(mix)) {
    if (left === 0) break;
    counts[kind] = (counts[kind] as number) + 1;
    left -= 1;
  }
  return counts;
}
