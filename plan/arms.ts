/**
 * From `ablations` and `sweep` to arms. An arm is the spec with a few values changed by dotted path: those of one
 * ablation, then those of one point of the sweep. How many there are is known before any is made.
 */
import { child, type Located, type LocatedMap, toPlain } from './located.ts';
import type { Assignment } from './overrides.ts';
import { type Place, type Problem, problem, quoted } from './problem.ts';

export const MAX_ARMS = 1024;

export interface ArmDraft {
  name: string;
  assignments: Assignment[];
}

const PATH = /^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*$/i;

/** Empty when the spec has neither ablations nor a sweep. */
export function armsOf(root: Located): { arms: ArmDraft[]; problems: Problem[] } {
  const ablations = child(root, 'ablations');
  const sweep = child(root, 'sweep');
  const problems: Problem[] = [];
  const named = ablations?.kind === 'map' ? entriesOf(ablations, problems) : [];
  const size = Math.max(1, named.length) * (sweep === undefined ? 1 : sizeOf(sweep));
  if (size > MAX_ARMS) {
    const at = (sweep ?? (ablations as Located)).at;
    return { arms: [], problems: [problem('SWEEP_SIZE', at, `${size} arms; a spec has at most ${MAX_ARMS}`)] };
  }
  const points = sweep === undefined ? [] : pointsOf(sweep, problems);
  if (sweep !== undefined && points.length === 0 && listed(sweep, 'exclude').length > 0)
    problems.push(problem('EMPTY', sweep.at, '`exclude` leaves no combination of `matrix`'));
  const paths = new Set(points.flat().map(({ path }) => path.join('.')));
  const shared = repeated([...paths].map(lastStep));
  const nameOf = (point: Point): string => pointName(point, shared);
  const arms =
    points.length === 0
      ? named
      : named.length === 0
        ? points.map((point) => ({ name: nameOf(point), assignments: point }))
        : named.flatMap((arm) => crossed(arm, points, nameOf));
  const [twice] = repeated(arms.map(({ name }) => name));
  if (sweep !== undefined && twice !== undefined)
    problems.push(problem('DUP_KEY', sweep.at, `two arms would be called ${quoted(twice)}`));
  return { arms, problems };
}

/** An ablation at every point of the sweep. A value for what the ablation removes says nothing: such points are one. */
function crossed(arm: ArmDraft, points: readonly Point[], nameOf: (point: Point) => string): ArmDraft[] {
  const removed = arm.assignments.filter(({ mode }) => mode === 'remove').map(({ path }) => `${path.join('.')}.`);
  const crossings = points.map((point) => {
    const kept = point.filter(({ path }) => !removed.some((part) => `${path.join('.')}.`.startsWith(part)));
    const name = kept.length === 0 ? arm.name : `${arm.name},${nameOf(kept)}`;
    return { name, assignments: [...arm.assignments, ...kept], isWhole: kept.length === point.length };
  });
  const seen = new Set<string>();
  return crossings.flatMap(({ name, assignments, isWhole }) => {
    const isNew = seen.size < seen.add(name).size;
    return isWhole || isNew ? [{ name, assignments }] : [];
  });
}

/** What an arm changes, as data. */
export function changesOf(assignments: readonly Assignment[]): Record<string, unknown> {
  return Object.fromEntries(assignments.map(({ path, value }) => [path.join('.'), toPlain(value)]));
}

/** The document an arm is laid over. */
export function withoutArms(root: Located): Located {
  if (root.kind !== 'map') return root;
  const entries = new Map(root.entries);
  entries.delete('ablations');
  entries.delete('sweep');
  return { ...root, entries };
}

function entriesOf(ablations: LocatedMap, problems: Problem[]): ArmDraft[] {
  return [...ablations.entries]
    .filter(([, { value }]) => value.kind === 'map')
    .map(([name, { value }]) => ({ name, assignments: assignmentsOf(value as LocatedMap, problems) }));
}

/** Dotted paths and what stands there; a map is merged with what the spec has. */
function assignmentsOf(changes: LocatedMap, problems: Problem[]): Assignment[] {
  return [...changes.entries].flatMap(([path, { key, value }]): Assignment[] => {
    if (!isPath(path, key, problems)) return [];
    return [{ mode: value.kind === 'unset' ? 'remove' : 'merge', path: path.split('.'), value, at: key }];
  });
}

/** Sections that say something of the run as a whole. */
const OF_THE_RUN = new Set([
  'api_version',
  'extends',
  'name',
  'tracking',
  'budget',
  'references',
  'compare',
  'ablations',
  'sweep',
]);

function isPath(path: string, at: Place, problems: Problem[]): boolean {
  const section = path.split('.')[0] as string;
  if (OF_THE_RUN.has(section)) {
    problems.push(problem('VALUE', at, `\`${section}\` is of the whole run; no arm has its own`));
    return false;
  }
  if (PATH.test(path)) return true;
  problems.push(problem('NAME', at, `${quoted(path)} is no dotted path`, 'write section.field'));
  return false;
}

interface Axis {
  path: string;
  key: Place;
  values: Located[];
}

function axesOf(sweep: Located): Axis[] {
  const matrix = child(sweep, 'matrix');
  if (matrix?.kind !== 'map') return [];
  return [...matrix.entries].flatMap(([path, { key, value }]) =>
    value.kind === 'list' ? [{ path, key, values: value.items }] : [],
  );
}

const listed = (sweep: Located, name: 'include' | 'exclude'): LocatedMap[] => {
  const list = child(sweep, name);
  return list?.kind === 'list' ? list.items.filter((item) => item.kind === 'map') : [];
};

/** At most: what `exclude` takes away is not known before the points are made. */
function sizeOf(sweep: Located): number {
  return axesOf(sweep).reduce((size, { values }) => size * values.length, 1) + listed(sweep, 'include').length;
}

type Point = Assignment[];

function pointsOf(sweep: Located, problems: Problem[]): Point[] {
  const axes = axesOf(sweep).filter(({ path, key }) => isPath(path, key, problems));
  const excluded = listed(sweep, 'exclude').map(plainPoint);
  const grid = axes
    .reduce<Assignment[][]>(
      (points, { path, key, values }) =>
        points.flatMap((point) =>
          values.map((value): Assignment[] => [...point, { mode: 'merge', path: path.split('.'), value, at: key }]),
        ),
      [[]],
    )
    .filter((point) => point.length > 0 && !excluded.some((wanted) => matches(point, wanted)));
  const included = listed(sweep, 'include').map((point) => assignmentsOf(point, problems));
  return [...grid, ...included];
}

const plainPoint = (point: LocatedMap): Map<string, unknown> =>
  new Map([...point.entries].map(([path, { value }]) => [path, toPlain(value)]));

/** Whether a point has every value an exclusion names. */
function matches(point: readonly Assignment[], wanted: ReadonlyMap<string, unknown>): boolean {
  return [...wanted].every(([path, value]) =>
    point.some((one) => one.path.join('.') === path && JSON.stringify(toPlain(one.value)) === JSON.stringify(value)),
  );
}

/** A name is part of ids and paths, and its parts are told apart by commas. */
const NOT_IN_A_NAME = /[^\w.+-]+/g;
const LONGEST_VALUE = 40;

const lastStep = (path: string): string => path.slice(path.lastIndexOf('.') + 1);

function repeated(names: readonly string[]): Set<string> {
  const seen = new Set<string>();
  return new Set(names.filter((name) => seen.has(name) || !seen.add(name)));
}

/** `seed=42`: the last step of the path where that tells it from the others, else all of it. */
function pointName(point: Point, shared: ReadonlySet<string>): string {
  return point
    .map(({ path, value }) => {
      const [whole, last] = [path.join('.'), path.at(-1) as string];
      const plain = toPlain(value);
      const text = typeof plain === 'string' ? plain : JSON.stringify(plain);
      return `${shared.has(last) ? whole : last}=${text.replaceAll(NOT_IN_A_NAME, '_').slice(0, LONGEST_VALUE)}`;
    })
    .join(',');
}
