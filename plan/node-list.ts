/** The nodes of a plan as they are compiled: each gets its key when it is added, so its inputs come before it. */
import { createHash } from 'node:crypto';
import { canonicalJson } from '../schemas/canonical.ts';
import { type NodeParameters, UNKNOWN_DIGEST, type Unkeyed } from '../schemas/node-parameters.ts';
import type { NodeKind, PlanNode } from '../schemas/plan.ts';
import { KIND_VERSIONS } from './kind-versions.ts';
import { nodeKey } from './node-key.ts';

const STOCHASTIC: readonly NodeKind[] = ['tasks', 'trajectories', 'profile', 'sft', 'rl', 'benchmark'];

/** First 31 bits of SHA-256 of `<root seed>:<name>`. */
export function derivedSeed(root: number, name: string): number {
  return createHash('sha256').update(`${root}:${name}`).digest().readUInt32BE(0) >>> 1;
}

export interface NodeDraft<K extends NodeKind> {
  id: string;
  kind: K;
  inputs: string[];
  parameters: NodeParameters[K];
  files?: PlanNode['files'];
  seed?: number | undefined;
  unkeyed?: Unkeyed;
  /** What makes this key unknown, besides unknown inputs and files. */
  needs?: readonly { name: string; sha256: string }[];
}

export class NodeList {
  readonly nodes: PlanNode[] = [];
  readonly #seed: number;
  readonly #known: Map<string, PlanNode['parameters']>;

  /** `seed`: the root; `known`: parameters by key, of the arms before: what arms have in common is kept once. */
  constructor(seed: number, known: Map<string, PlanNode['parameters']>) {
    this.#seed = seed;
    this.#known = known;
  }

  add<K extends NodeKind>({
    id,
    kind,
    inputs,
    parameters,
    files = [],
    seed,
    unkeyed = {},
    needs = [],
  }: NodeDraft<K>): string {
    const parents = inputs.map((input) => this.#node(input));
    const kind_version = KIND_VERSIONS[kind];
    const ownSeed = STOCHASTIC.includes(kind) ? (seed ?? derivedSeed(this.#seed, id)) : null;
    const unknown = new Set([
      ...parents.flatMap((parent) => (parent.unkeyed as Unkeyed).unknown ?? []),
      ...needs.filter(({ sha256 }) => sha256 === UNKNOWN_DIGEST).map(({ name }) => name),
      ...files.filter(({ sha256 }) => sha256 === UNKNOWN_DIGEST).map(({ path }) => path),
    ]);
    const key = nodeKey(
      { kind, kind_version, parameters: { ...parameters }, files, seed: ownSeed },
      parents.map((parent) => parent.key),
    );
    const sorted = this.#known.get(key) ?? (JSON.parse(canonicalJson(parameters)) as PlanNode['parameters']);
    this.#known.set(key, sorted);
    const open: Unkeyed = { ...unkeyed, ...(unknown.size > 0 && { unknown: [...unknown] }) };
    this.nodes.push({
      id,
      kind,
      kind_version,
      key,
      inputs,
      parameters: sorted,
      files,
      seed: ownSeed,
      unkeyed: { ...open },
    });
    return id;
  }

  has(id: string): boolean {
    return this.nodes.some((node) => node.id === id);
  }

  #node(id: string): PlanNode {
    const found = this.nodes.find((node) => node.id === id);
    if (!found) throw new Error(`node ${id} is read before it is made`);
    return found;
  }
}
