/** A document in which every key and value knows its file, line and column, through all of composition. */
import type { Place } from './problem.ts';

export type Scalar = string | number | boolean | null;
export interface LocatedScalar {
  kind: 'scalar';
  at: Place;
  value: Scalar;
  /** Nobody wrote it; `at` is where its section stands. */
  isDefault?: true;
}
export interface LocatedList {
  kind: 'list';
  at: Place;
  items: Located[];
}
export interface LocatedMap {
  kind: 'map';
  at: Place;
  entries: Map<string, Entry>;
}
/** `!unset`: removes the key from what lies below. */
export interface Unset {
  kind: 'unset';
  at: Place;
}
export type Located = LocatedScalar | LocatedList | LocatedMap | Unset;
export interface Entry {
  /** Where the key stands; problems with a missing or unknown key point here. */
  key: Place;
  value: Located;
}

export type Path = readonly (string | number)[];

/** Lay `upper` over `lower`: maps merge deeply, everything else is replaced; `!unset` stays until `dropUnset`. */
export function merge(lower: Located, upper: Located): Located {
  if (lower.kind !== 'map' || upper.kind !== 'map') return upper;
  const entries = new Map(lower.entries);
  for (const [name, entry] of upper.entries) {
    const below = entries.get(name);
    entries.set(name, below === undefined ? entry : { key: entry.key, value: merge(below.value, entry.value) });
  }
  return { kind: 'map', at: upper.at, entries };
}

/**
 * A pure function of a part of a document, remembered by that part: a thousand arms differ in a few values and have
 * the rest in common, so a pass over the rest is made once.
 */
export function remembered<R>(work: (node: LocatedMap | LocatedList) => R): (node: LocatedMap | LocatedList) => R {
  const known = new WeakMap<Located, R>();
  return (node) => {
    const found = known.get(node);
    if (found !== undefined) return found;
    const result = work(node);
    known.set(node, result);
    return result;
  };
}

/** Another value for each part; where none changes, the node itself, so that what is known of it stays known. */
export function mapValues(
  node: LocatedMap | LocatedList,
  change: (value: Located, step: string | number) => Located,
): LocatedMap | LocatedList {
  if (node.kind === 'list') {
    const items = node.items.map(change);
    return items.some((item, index) => item !== node.items[index]) ? { ...node, items } : node;
  }
  let entries: LocatedMap['entries'] | undefined;
  for (const [name, { key, value }] of node.entries) {
    const after = change(value, name);
    if (after !== value) entries = (entries ?? new Map(node.entries)).set(name, { key, value: after });
  }
  return entries === undefined ? node : { ...node, entries };
}

/**
 * Gives for a part the first one that was equal to it, places included: arms that change a section alike then have it in
 * common, and what is remembered of it.
 */
export function commonParts(): (node: Located) => Located {
  const ids = new WeakMap<object, number>();
  let count = 0;
  const idOf = (thing: object): number => {
    const id = ids.get(thing) ?? ++count;
    ids.set(thing, id);
    return id;
  };
  const first = new Map<string, Located>();
  const firstOf = <N extends Located>(node: N, content: readonly unknown[]): N => {
    const identity = JSON.stringify([node.kind, idOf(node.at), ...content]);
    const known = first.get(identity) ?? node;
    first.set(identity, known);
    return known as N;
  };
  const found = new WeakMap<Located, Located>();
  const common = (node: Located): Located => {
    const known = found.get(node);
    if (known !== undefined) return known;
    const part = look(node);
    found.set(node, part).set(part, part);
    return part;
  };
  const look = (node: Located): Located => {
    if (node.kind === 'unset') return node;
    if (node.kind === 'scalar') return firstOf(node, [node.value, node.isDefault]);
    const part = mapValues(node, common);
    if (part.kind === 'list') return firstOf(part, part.items.map(idOf));
    const entries = [...part.entries].map(([name, { key, value }]) => [name, idOf(key), idOf(value)]);
    return firstOf(part, entries);
  };
  return common;
}

/** Remove the keys that were unset, once nothing can lie below any more. */
export function dropUnset(node: Located): Located {
  return node.kind === 'map' || node.kind === 'list' ? withoutUnset(node) : node;
}

const withoutUnset = remembered((node): LocatedMap | LocatedList => {
  if (node.kind === 'list' || ![...node.entries.values()].some(({ value }) => value.kind === 'unset'))
    return mapValues(node, dropUnset);
  const kept = [...node.entries].filter(([, { value }]) => value.kind !== 'unset');
  return mapValues({ ...node, entries: new Map(kept) }, dropUnset);
});

export function child(node: Located | undefined, name: string): Located | undefined {
  return node?.kind === 'map' ? node.entries.get(name)?.value : undefined;
}

export function nodeAt(root: Located, path: Path): Located | undefined {
  let node: Located | undefined = root;
  for (const step of path) node = node?.kind === 'list' ? node.items[Number(step)] : child(node, String(step));
  return node;
}

/** Where the value at a path stands; of what is missing, where the nearest part above it stands. */
export function placeAt(root: Located, path: Path): Place {
  for (let length = path.length; length > 0; length--) {
    const found = nodeAt(root, path.slice(0, length));
    if (found) return length === path.length ? found.at : keyPlaceAt(root, path.slice(0, length));
  }
  return root.at;
}

/** Where the key of a path stands; of list items and the root, where the value stands. */
export function keyPlaceAt(root: Located, path: Path): Place {
  const parent = path.length === 0 ? undefined : nodeAt(root, path.slice(0, -1));
  const entry = parent?.kind === 'map' ? parent.entries.get(String(path.at(-1))) : undefined;
  return entry?.key ?? nodeAt(root, path)?.at ?? placeAt(root, path);
}

/**
 * The same document with another value at a path; maps on the way are made. `key` is where new keys stand. Maps on the
 * way are copied once: those in `copied` are the caller's own, and are changed in place.
 */
export function withValue(
  root: Located,
  path: readonly string[],
  value: Located,
  key: Place = value.at,
  copied: Set<LocatedMap> = new Set(),
): Located {
  const [name, ...rest] = path;
  if (name === undefined) return value;
  const map = ownMap(root, copied);
  const below = map.entries.get(name);
  const empty: LocatedMap = { kind: 'map', at: value.at, entries: new Map() };
  map.entries.set(name, { key: below?.key ?? key, value: withValue(below?.value ?? empty, rest, value, key, copied) });
  return map;
}

function ownMap(node: Located, copied: Set<LocatedMap>): LocatedMap {
  if (node.kind === 'map' && copied.has(node)) return node;
  const map: LocatedMap = { kind: 'map', at: node.at, entries: new Map(node.kind === 'map' ? node.entries : []) };
  copied.add(map);
  return map;
}

/** How many values a document has; a part that stands in several places counts in each. */
export const countValues = (node: Located): number =>
  node.kind === 'map' || node.kind === 'list' ? countParts(node) : 1;

const countParts = remembered((node): number => {
  let count = 1;
  if (node.kind === 'list') for (const item of node.items) count += countValues(item);
  else for (const { value } of node.entries.values()) count += countValues(value);
  return count;
});

/** Plain data, to be read only: parts are shared. Maps have no prototype on the way in, so no key can reach one. */
export function toPlain(node: Located): unknown {
  switch (node.kind) {
    case 'scalar':
      return node.value;
    case 'unset':
      return null;
    default:
      return plainParts(node);
  }
}

const plainParts = remembered((node): unknown =>
  node.kind === 'list'
    ? node.items.map(toPlain)
    : Object.fromEntries([...node.entries].map(([name, { value }]) => [name, toPlain(value)])),
);

/** Data that nobody wrote: a default stands where its section does. */
export function fromPlain(value: unknown, at: Place): Located {
  if (Array.isArray(value)) return { kind: 'list', at, items: value.map((item) => fromPlain(item, at)) };
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).map(
      ([name, item]) => [name, { key: at, value: fromPlain(item, at) }] as const,
    );
    return { kind: 'map', at, entries: new Map(entries) };
  }
  return { kind: 'scalar', at, value: value as Scalar, isDefault: true };
}

/** Every leaf with its path. */
export function* leaves(node: Located, path: Path = []): Generator<{ path: Path; leaf: LocatedScalar | Unset }> {
  if (node.kind === 'map') for (const [name, { value }] of node.entries) yield* leaves(value, [...path, name]);
  else if (node.kind === 'list')
    for (const [index, item] of node.items.entries()) yield* leaves(item, [...path, index]);
  else yield { path, leaf: node };
}
