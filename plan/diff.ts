/** What differs between two documents, leaf by leaf, and between two nodes, by what their keys are made of. */
import { canonicalJson } from '../schemas/canonical.ts';
import type { PlanArm, PlanNode } from '../schemas/plan.ts';

/** One leaf by its dotted path; undefined where a side does not have it. */
export interface LeafChange {
  path: string;
  before: unknown;
  after: unknown;
}

/** Leaves that two plain documents do not share. Lists are leaves: an overlay replaces them whole. */
export function changedLeaves(before: unknown, after: unknown): LeafChange[] {
  const [old, now] = [leavesOf(before), leavesOf(after)];
  const paths = [...new Set([...old.keys(), ...now.keys()])].sort();
  return paths
    .map((path) => ({ path, before: old.get(path), after: now.get(path) }))
    .filter((change) => !isSame(change.before, change.after));
}

const isSame = (a: unknown, b: unknown): boolean =>
  a === undefined || b === undefined ? a === b : canonicalJson(a) === canonicalJson(b);

function leavesOf(value: unknown, path = ''): Map<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return new Map([[path, value]]);
  const entries = Object.entries(value);
  if (entries.length === 0) return new Map([[path, value]]);
  return new Map(entries.flatMap(([name, inner]) => [...leavesOf(inner, path === '' ? name : `${path}.${name}`)]));
}

/** One component of a key that is not what it was. */
export interface KeyChange {
  component: 'kind' | 'kind_version' | 'parameter' | 'seed' | 'file' | 'input' | 'nonce';
  /** A parameter's dotted path, a file's path, an input's id; else the component itself. */
  name: string;
  before: unknown;
  after: unknown;
}

/** A node among those of its arm, so that its inputs can be looked up. */
export interface PlacedNode {
  node: PlanNode;
  nodes: readonly PlanNode[];
}

/** What makes the key of `after` another one than that of `before`; empty exactly when the keys are equal. */
export function keyChanges(before: PlacedNode, after: PlacedNode): KeyChange[] {
  if (before.node.key === after.node.key) return [];
  const [old, now] = [before.node, after.node];
  const parameters = changedLeaves(old.parameters, now.parameters).map(
    ({ path, ...values }): KeyChange => ({ component: 'parameter', name: path, ...values }),
  );
  return [
    ...scalar('nonce', old.nonce, now.nonce),
    ...scalar('kind', old.kind, now.kind),
    ...parameters,
    ...fileChanges(old.files, now.files),
    ...scalar('seed', old.seed, now.seed),
    ...scalar('kind_version', old.kind_version, now.kind_version),
    ...inputChanges(before, after),
  ];
}

function scalar(component: KeyChange['component'], before: unknown, after: unknown): KeyChange[] {
  return isSame(before, after) ? [] : [{ component, name: component, before, after }];
}

/** A file that only moved has the same digest in the same place, and changes nothing. */
function fileChanges(before: PlanNode['files'], after: PlanNode['files']): KeyChange[] {
  const digests = (files: PlanNode['files']): string => files.map(({ sha256 }) => sha256).join();
  if (digests(before) === digests(after)) return [];
  const [old, now] = [before, after].map((files) => new Map(files.map(({ path, sha256 }) => [path, sha256])));
  const paths = new Set([...before, ...after].map(({ path }) => path));
  const changed = [...paths].filter((path) => old?.get(path) !== now?.get(path));
  // The same files in another order: a source was renamed.
  return (changed.length > 0 ? changed : [...paths]).map((path) => ({
    component: 'file',
    name: path,
    before: old?.get(path),
    after: now?.get(path),
  }));
}

function inputChanges(before: PlacedNode, after: PlacedNode): KeyChange[] {
  const keyOf = ({ nodes }: PlacedNode, id: string): string | undefined => nodes.find((node) => node.id === id)?.key;
  const ids = [...new Set([...before.node.inputs, ...after.node.inputs])];
  return ids.flatMap((id) => {
    const old = before.node.inputs.includes(id) ? keyOf(before, id) : undefined;
    const now = after.node.inputs.includes(id) ? keyOf(after, id) : undefined;
    return old === now ? [] : [{ component: 'input' as const, name: id, before: old, after: now }];
  });
}

const SHOWN_DIGEST = 12;
const SHOWN_VALUE = 60;

/** `rollout.temperature: 1 → 0.7`, `file pages.jsonl: 0a1b… → 9f8e…`, `input corpus changed`. */
export function changeText({ component, name, before, after }: KeyChange): string {
  switch (component) {
    case 'parameter':
      return leafText({ path: name, before, after });
    case 'file':
      return `file ${name}: ${digestText(before)} → ${digestText(after)}`;
    case 'input':
      if (before === undefined) return `input ${name} is new`;
      return after === undefined ? `input ${name} is gone` : `input ${name} changed`;
    case 'kind':
    case 'seed':
      return `${component}: ${valueText(before)} → ${valueText(after)}`;
    case 'kind_version':
      return `what it does changed: version ${valueText(before)} → ${valueText(after)}`;
    case 'nonce':
      return after === undefined ? 'the earlier one was a rerun' : 'a rerun was asked for';
    default:
      return component satisfies never;
  }
}

export function leafText({ path, before, after }: LeafChange): string {
  return `${path}: ${valueText(before)} → ${valueText(after)}`;
}

function digestText(digest: unknown): string {
  return typeof digest === 'string' ? digest.slice(0, SHOWN_DIGEST) : 'none';
}

export function valueText(value: unknown): string {
  if (value === undefined) return 'none';
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return text.length > SHOWN_VALUE ? `${text.slice(0, SHOWN_VALUE)}…` : text;
}

/** Arms of the same name belong together; a plan's only arm belongs to that of another plan, whatever they are called. */
export function pairArms(before: readonly PlanArm[], after: readonly PlanArm[]): [PlanArm, PlanArm][] {
  const [[only], [other]] = [before, after];
  if (before.length === 1 && after.length === 1 && only && other) return [[only, other]];
  return after.flatMap((arm): [PlanArm, PlanArm][] => {
    const same = before.find(({ name }) => name === arm.name);
    return same === undefined ? [] : [[same, arm]];
  });
}
