/** Whole numbers that sum to `total` and are as near to the shares as can be (largest remainder). */
export function apportion(total: number, shares: Readonly<Record<string, number>>): Record<string, number> {
  const names = Object.keys(shares).sort();
  const sum = names.reduce((value, name) => value + (shares[name] as number), 0);
  if (sum <= 0) return Object.fromEntries(names.map((name) => [name, 0]));
  const exact = names.map((name) => ({ name, value: (total * (shares[name] as number)) / sum }));
  const result = new Map(exact.map(({ name, value }) => [name, Math.floor(value + 1e-9)]));
  const left = total - [...result.values()].reduce((value, count) => value + count, 0);
  const byRemainder = exact.toSorted((a, b) => remainder(b.value) - remainder(a.value) || (a.name < b.name ? -1 : 1));
  for (const { name } of byRemainder.slice(0, left)) result.set(name, (result.get(name) as number) + 1);
  return Object.fromEntries(result);
}

/** Rounded, so that shares which differ only by floating point error tie. */
function remainder(value: number): number {
  return Math.round((value - Math.floor(value + 1e-9)) * 1e9);
}
