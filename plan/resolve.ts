/**
 * From layers to one spec, in this order: files of `extends`, the file, `-f` overlays, command line, ablation arm,
 * sweep point, `like`, `benchmark_defaults`, references, defaults, validation.
 */
import { Experiment } from '../schemas/experiment.ts';
import { fillDefaults } from './defaults.ts';
import { child, dropUnset, keyPlaceAt, type Located, type LocatedMap, merge, toPlain, withValue } from './located.ts';
import { type Assignment, applyAssignments } from './overrides.ts';
import { didYouMean, type Problem, placeText, problem, quoted } from './problem.ts';
import { resolveReferences } from './references.ts';
import { viewOf } from './schema-walk.ts';
import { validateSpec } from './validate-spec.ts';

/** One source of values; a later layer wins. */
export type Layer =
  | { kind: 'document'; root: LocatedMap }
  | { kind: 'assignments'; assignments: readonly Assignment[] };

export interface Resolved {
  /** Typed only when `isValid`; otherwise as far as it could be read. */
  experiment: Experiment;
  /** The same, with the place of every value. */
  root: Located;
  isValid: boolean;
  /** Of `like` and references. */
  problems: Problem[];
  /** Of shape and types. */
  invalid: Problem[];
}

/** What comes after composition: of the spec itself, or of one of its arms. */
export function resolveSpec(composed: Located): Resolved {
  const schema = viewOf(Experiment);
  const liked = expandLike(composed);
  const inherited = inheritBenchmarkDefaults(dropUnset(liked.root) as LocatedMap);
  const referenced = resolveReferences(inherited, schema);
  const root = fillDefaults(schema, referenced.root);
  const halfMade = new Set(liked.broken.map((name) => placeText(keyPlaceAt(root, ['curriculum', name]))));
  const invalid = validateSpec(root).filter((found) => found.code !== 'REQUIRED' || !halfMade.has(placeText(found)));
  return {
    experiment: toPlain(root) as Experiment,
    root,
    isValid: invalid.length === 0 && liked.problems.length === 0,
    problems: [...liked.problems, ...referenced.problems],
    invalid,
  };
}

export function composeLayers(layers: readonly Layer[]): { root: Located; problems: Problem[] } {
  const problems: Problem[] = [];
  let root: Located | undefined;
  for (const layer of layers) {
    if (layer.kind === 'document') {
      root = root === undefined ? layer.root : merge(root, layer.root);
    } else if (root !== undefined) {
      const applied = applyAssignments(root, layer.assignments);
      root = applied.root;
      problems.push(...applied.problems);
    }
  }
  return { root: root ?? { kind: 'map', at: { file: '', line: 1, column: 1 }, entries: new Map() }, problems };
}

/** A stage that says `like: other` is laid over that stage, as it is after everything before. */
function expandLike(root: Located): { root: Located; problems: Problem[]; broken: string[] } {
  const problems: Problem[] = [];
  const broken: string[] = [];
  const stages = child(root, 'curriculum');
  if (stages?.kind !== 'map') return { root, problems, broken };

  const expand = (name: string, above: readonly string[]): Located => {
    const stage = child(stages, name) as Located;
    const like = child(stage, 'like');
    if (stage.kind !== 'map' || like === undefined || like.kind === 'unset') return stage;
    const entries = new Map(stage.entries);
    entries.delete('like');
    const own: LocatedMap = { ...stage, entries };
    const other = like.kind === 'scalar' && typeof like.value === 'string' ? like.value : '';
    const way = [...above, name];
    if (way.includes(other)) {
      // Every stage of the circle comes by here; the first of the file tells it for all.
      const isFirst = other === way[0] && way.every((seen) => !broken.includes(seen));
      if (isFirst)
        problems.push(
          problem('CYCLE', like.at, `stages are like each other in a circle: ${[...way, other].join(' → ')}`),
        );
      broken.push(...way);
      return own;
    }
    if (!stages.entries.has(other)) {
      broken.push(name);
      problems.push(
        problem('REF', like.at, `there is no stage ${quoted(other)}`, didYouMean(other, [...stages.entries.keys()])),
      );
      return own;
    }
    return merge(expand(other, way), own);
  };

  const names = [...stages.entries.keys()].filter((name) => child(child(stages, name), 'like') !== undefined);
  const changed = names.reduce<Located>(
    (whole, name) => withValue(whole, ['curriculum', name], expand(name, [])),
    root,
  );
  return { root: changed, problems, broken };
}

/** `benchmark_defaults` lies under every benchmark; it is kept in no other place. */
function inheritBenchmarkDefaults(root: LocatedMap): LocatedMap {
  const defaults = child(root, 'benchmark_defaults');
  const benchmarks = child(root, 'benchmarks');
  if (defaults?.kind !== 'map' || benchmarks?.kind !== 'map') return root;
  return [...benchmarks.entries].reduce<Located>(
    (whole, [name, { value }]) =>
      value.kind === 'map' ? withValue(whole, ['benchmarks', name], merge(defaults, value)) : whole,
    root,
  ) as LocatedMap;
}
