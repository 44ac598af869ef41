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

/**
 * The same for a table: cells that sum to the apportioned totals of their rows and, as far as whole numbers allow,
 * of their columns.
 */
export function apportionTable(
  total: number,
  rows: Readonly<Record<string, number>>,
  columns: Readonly<Record<string, number>>,
): Record<string, Record<string, number>> {
  const [rowTotals, columnTotals] = [apportion(total, rows), apportion(total, columns)];
  const [rowSum, columnSum] = [rows, columns].map((shares) =>
    Object.values(shares).reduce((sum, share) => sum + share, 0),
  ) as [number, number];
  const cells = Object.keys(rowTotals).flatMap((row) =>
    Object.keys(columnTotals).map((column) => {
      const exact = (total * (rows[row] as number) * (columns[column] as number)) / (rowSum * columnSum);
      return { row, column, exact, count: Math.floor(exact + 1e-9) };
    }),
  );
  const left = (name: 'row' | 'column', value: string, wanted: number) =>
    wanted - cells.reduce((sum, cell) => sum + (cell[name] === value ? cell.count : 0), 0);
  const byRemainder = cells.toSorted((a, b) => remainder(b.exact) - remainder(a.exact));
  for (const needsColumn of [true, false]) {
    for (const cell of byRemainder) {
      const rowLeft = left('row', cell.row, rowTotals[cell.row] as number);
      const columnLeft = left('column', cell.column, columnTotals[cell.column] as number);
      if (rowLeft > 0 && (columnLeft > 0 || !needsColumn)) cell.count += 1;
    }
  }
  return Object.fromEntries(
    Object.keys(rowTotals).map((row) => [
      row,
      Object.fromEntries(cells.filter((cell) => cell.row === row).map(({ column, count }) => [column, count])),
    ]),
  );
}
