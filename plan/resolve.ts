/**
 * From layers to one spec, in this order: files of `extends`, the file, `-f` overlays, command line, ablation arm,
 * sweep point, `like`, `benchmark_defaults`, references, defaults, validation.
 */
import type { Experiment } from '../schemas/experiment.ts';
import { compiledSchemas } from './compiled-schemas.ts';
import { fillDefaults } from './defaults.ts';
import {
  child,
  countValues,
  dropUnset,
  keyPlaceAt,
  type Located,
  type LocatedMap,
  mapValues,
  merge,
  toPlain,
  withValue,
} from './located.ts';
import { type Assignment, applyAssignments } from './overrides.ts';
import { didYouMean, type Problem, placeText, problem, quoted } from './problem.ts';
import { resolveReferences } from './references.ts';
import type { SchemaView } from './schema-walk.ts';
import { MAX_NODES } from './strict-yaml.ts';
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

/** What comes after composition: of the spec itself, or of one of its arms. `common` finds what arms share. */
export function resolveSpec(composed: Located, common: (part: Located) => Located): Resolved {
  const schema: SchemaView = compiledSchemas.experiment.schema;
  const liked = expandLike(composed);
  const inherited = inheritBenchmarkDefaults(dropUnset(liked.root) as LocatedMap);
  if (countValues(inherited) > MAX_NODES) return tooLarge(inherited);
  const referenced = resolveReferences(inherited, schema);
  const root = mapValues(fillDefaults(schema, referenced.root) as LocatedMap, common);
  const halfMade = new Set([...liked.broken].map((name) => placeText(keyPlaceAt(root, ['curriculum', name]))));
  const invalid = validateSpec(root).filter((found) => found.code !== 'REQUIRED' || !halfMade.has(placeText(found)));
  return {
    experiment: toPlain(root) as Experiment,
    root,
    isValid: invalid.length === 0 && liked.problems.length === 0,
    problems: [...liked.problems, ...referenced.problems],
    invalid,
  };
}

function tooLarge(root: LocatedMap): Resolved {
  const found = problem(
    'SIZE',
    root.at,
    `with all that it extends and repeats by \`like\` or \`benchmark_defaults\`, the spec has more than ${MAX_NODES} values`,
  );
  return { experiment: {} as Experiment, root, isValid: false, problems: [found], invalid: [] };
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
function expandLike(root: Located): { root: Located; problems: Problem[]; broken: ReadonlySet<string> } {
  const problems: Problem[] = [];
  const broken = new Set<string>();
  const stages = child(root, 'curriculum');
  if (stages?.kind !== 'map') return { root, problems, broken };

  const expanded = new Map<string, Located>();
  /** Follows a chain to a stage that is like no other or is known, and lays it together on the way back. */
  const expand = (start: string): Located => {
    const way = new Map<string, Located>();
    let name = start;
    let below = expanded.get(start);
    let isBroken = broken.has(start);
    while (below === undefined) {
      const stage = child(stages, name) as Located;
      const like = likeOf(stage);
      way.set(name, like === undefined ? stage : withoutLike(stage as LocatedMap));
      if (like === undefined) break;
      const other = like.kind === 'scalar' && typeof like.value === 'string' ? like.value : '';
      const found = mistakeOfLike(other, like, way, stages);
      if (found !== null) problems.push(found);
      isBroken = found !== null || broken.has(other);
      if (found !== null) break;
      name = other;
      below = expanded.get(other);
    }
    for (const [passed, own] of [...way].reverse()) {
      below = below === undefined ? own : merge(below, own);
      expanded.set(passed, below);
      if (isBroken) broken.add(passed);
    }
    return below as Located;
  };

  const laid = mapValues(stages, (_, name) => expand(String(name)));
  return { root: laid === stages ? root : withValue(root, ['curriculum'], laid), problems, broken };
}

function likeOf(stage: Located): Located | undefined {
  const like = child(stage, 'like');
  return like === undefined || like.kind === 'unset' ? undefined : like;
}

function withoutLike(stage: LocatedMap): LocatedMap {
  const entries = new Map(stage.entries);
  entries.delete('like');
  return { ...stage, entries };
}

/** A circle is said where it closes, once: its stages are known afterwards. */
function mistakeOfLike(
  other: string,
  { at }: Located,
  way: ReadonlyMap<string, Located>,
  stages: LocatedMap,
): Problem | null {
  if (way.has(other)) {
    const passed = [...way.keys()];
    const circle = [...passed.slice(passed.indexOf(other)), other].join(' → ');
    return problem('CYCLE', at, `stages are like each other in a circle: ${circle}`);
  }
  if (stages.entries.has(other)) return null;
  return problem('REF', at, `there is no stage ${quoted(other)}`, didYouMean(other, [...stages.entries.keys()]));
}

/** `benchmark_defaults` lies under every benchmark; it is kept in no other place. */
function inheritBenchmarkDefaults(root: LocatedMap): LocatedMap {
  const defaults = child(root, 'benchmark_defaults');
  const benchmarks = child(root, 'benchmarks');
  if (defaults?.kind !== 'map' || benchmarks?.kind !== 'map') return root;
  const laid = mapValues(benchmarks, (one) => merge(defaults, one));
  return withValue(root, ['benchmarks'], laid) as LocatedMap;
}
