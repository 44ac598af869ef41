/** Makes every default of the schema explicit, so that nothing further down has defaults of its own. */
import { fromPlain, type Located, type LocatedList, type LocatedMap, mapValues, remembered } from './located.ts';
import type { Place } from './problem.ts';
import { chooseShape, partOf, type SchemaView } from './schema-walk.ts';

export function fillDefaults(schema: SchemaView | undefined, node: Located): Located {
  if (schema === undefined || (node.kind !== 'map' && node.kind !== 'list')) return node;
  let filled = bySchema.get(schema);
  if (filled === undefined) {
    filled = remembered((part) => filledPart(schema, part));
    bySchema.set(schema, filled);
  }
  return filled(node);
}

const bySchema = new WeakMap<SchemaView, ReturnType<typeof remembered<Located>>>();

function filledPart(schema: SchemaView, node: LocatedMap | LocatedList): Located {
  const shape = node.kind === 'map' ? chooseShape(schema, node) : schema;
  const part = mapValues(node, (value, step) => fillDefaults(partOf(shape, step), value));
  if (part.kind === 'list') return part;
  const absent = Object.entries(shape?.properties ?? {}).filter(
    ([name, { default: value }]) => value !== undefined && !part.entries.has(name),
  );
  if (absent.length === 0) return part;
  const entries = new Map(part.entries);
  for (const [name, missing] of absent) {
    entries.set(name, { key: node.at, value: defaultAt(node.at, missing) });
  }
  return { ...part, entries };
}

const byPlace = new WeakMap<Place, Map<SchemaView, Located>>();

/** The same one for every arm, so that what is remembered of it stays known. */
function defaultAt(at: Place, schema: SchemaView): Located {
  const known = byPlace.get(at) ?? new Map<SchemaView, Located>();
  byPlace.set(at, known);
  const value = known.get(schema) ?? fillDefaults(schema, fromPlain(schema.default, at));
  known.set(schema, value);
  return value;
}
