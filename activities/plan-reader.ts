import type { Manifest } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import type { NodeKind, Plan, PlanArm, PlanNode } from '../schemas/plan.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { NodeRef } from './index.ts';

/** One input of a node: which node it was, and what that node published. */
export interface NodeInput {
  id: string;
  kind: NodeKind;
  manifest: Manifest;
  digest: string;
}

/** Reads frozen plans and the published inputs of their nodes. Plans are immutable, so they are kept. */
export class PlanReader {
  readonly #store: ArtifactStore;
  readonly #plans = new Map<string, Promise<Plan>>();

  constructor(store: ArtifactStore) {
    this.#store = store;
  }

  load(blob: string): Promise<Plan> {
    const plan = this.#plans.get(blob) ?? this.#store.readJson<Plan>(blob);
    this.#plans.set(blob, plan);
    plan.catch(() => this.#plans.delete(blob));
    return plan;
  }

  async arm(ref: { plan: string; arm: string }): Promise<PlanArm> {
    const plan = await this.load(ref.plan);
    const arm = plan.arms.find(({ name }) => name === ref.arm);
    if (!arm) throw new ExpError('PLAN', ref.arm, 'the stored plan has no such arm');
    return arm;
  }

  async nodes(ref: { plan: string; arm: string }): Promise<PlanNode[]> {
    return (await this.arm(ref)).nodes;
  }

  async node(ref: NodeRef): Promise<PlanNode> {
    const node = (await this.nodes(ref)).find(({ id }) => id === ref.id);
    if (!node) throw new ExpError('PLAN', ref.id, 'the stored plan has no such node');
    return node;
  }

  /** Manifests of the nodes this one reads, in plan order. */
  async inputs(ref: NodeRef): Promise<NodeInput[]> {
    const nodes = await this.nodes(ref);
    const node = await this.node(ref);
    return Promise.all(
      node.inputs.map(async (id) => {
        const input = nodes.find((candidate) => candidate.id === id) as PlanNode;
        const artifact = await this.#store.find(input.key);
        if (!artifact) throw new ExpError('ARTIFACT_MISSING', id, `${ref.id} needs it, and it is not published`);
        return { id, kind: input.kind, manifest: await this.#store.manifest(artifact), digest: artifact.digest };
      }),
    );
  }

  /** The one input of a kind. */
  async input(ref: NodeRef, kind: NodeKind): Promise<Manifest> {
    const found = (await this.inputs(ref)).find((input) => input.kind === kind);
    if (!found) throw new ExpError('PLAN', ref.id, `has no input of kind ${kind}`);
    return found.manifest;
  }

  /** What a manifest records of the artifacts it was made from. */
  async lineage(ref: NodeRef): Promise<Manifest['inputs']> {
    return (await this.inputs(ref)).map(({ id, manifest, digest }) => ({ node: id, key: manifest.key, digest }));
  }
}
