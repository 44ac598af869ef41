/** The columns of a comparison that say what differs, short enough to stand beside the numbers. */
import type { ComparedRow } from './comparison.ts';

export interface DifferenceColumn {
  /** The shortest end of the path that no other column has. */
  title: string;
  /** A leaf of the spec, or the section whose leaves some rows have and others do not. */
  path: string;
  /** One for each row. */
  cells: string[];
}

const ABSENT = '–';

/** A section that is there or not is one column, whatever it holds; every other leaf has its own. */
export function differenceColumns(rows: readonly Pick<ComparedRow, 'differs'>[]): DifferenceColumn[] {
  const columns = new Map<string, { paths: string[]; cells: string[] }>();
  for (const leaf of Object.keys(rows[0]?.differs ?? {})) {
    const values = rows.map(({ differs }) => differs[leaf] ?? ABSENT);
    const isThereOrNot = values.includes(ABSENT) && new Set(values).size === 2;
    const presence = values.map((value) => (value === ABSENT ? ABSENT : 'set'));
    const group = isThereOrNot ? `${sectionOf(leaf)} ${presence.join()}` : leaf;
    const known = columns.get(group);
    if (known === undefined) columns.set(group, { paths: [leaf], cells: values });
    else columns.set(group, { paths: [...known.paths, leaf], cells: presence });
  }
  const found = [...columns.values()].map(({ paths, cells }) => ({ path: commonPath(paths), cells }));
  return found.map((column) => ({ ...column, title: shortest(column.path, found) }));
}

/** `curriculum.stage1.difficulty.keep.max_passes` belongs to `curriculum.stage1.difficulty`. */
const sectionOf = (leaf: string): string => leaf.split('.').slice(0, 3).join('.');

function commonPath(paths: readonly string[]): string {
  const [first = [], ...others] = paths.map((path) => path.split('.'));
  const length = first.findIndex((step, at) => others.some((other) => other[at] !== step));
  return first.slice(0, length === -1 ? first.length : length).join('.');
}

function shortest(path: string, columns: readonly { path: string }[]): string {
  const steps = path.split('.');
  const ends = steps.map((_, at) => steps.slice(at).join('.')).reverse();
  const isAlone = (end: string): boolean =>
    columns.every((other) => other.path === path || !`.${other.path}`.endsWith(`.${end}`));
  return ends.find(isAlone) ?? path;
}
