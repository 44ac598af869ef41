import type { CheckpointBody } from '../schemas/artifact.ts';
import { contentKey } from '../schemas/canonical.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import { nodeOf, type PolicyParameters } from '../schemas/node-parameters.ts';
import type { PlanNode } from '../schemas/plan.ts';
import type { NodeRef } from './index.ts';
import type { NodeInput, PlanReader } from './plan-reader.ts';

/** The weights named by a base model, full weights in its place, and the adapters merged onto them, in order. */
export function checkpointOf({ model, model_sha256, weights, adapters }: Omit<Checkpoint, 'digest'>): Checkpoint {
  const full = weights !== undefined && { weights };
  return { model, model_sha256, ...full, adapters, digest: contentKey({ model_sha256, ...full, adapters }) };
}

/** What a node starts from: the checkpoint of its sft or rl input, or the policy's base. */
export async function parentCheckpoint(plans: PlanReader, ref: NodeRef): Promise<Checkpoint> {
  const node = await plans.node(ref);
  // A stage that only its KL term is measured to is an input of the same kinds.
  const reference = klReferenceOf(node);
  const parent = (await plans.inputs(ref)).find(
    ({ id, kind }) => (kind === 'sft' || kind === 'rl') && id !== reference,
  );
  return parent ? publishedCheckpoint(parent) : baseCheckpoint(node);
}

/** What the KL term of an rl node is measured to; null for the weights that the node starts from. */
export async function referenceCheckpoint(plans: PlanReader, ref: NodeRef): Promise<Checkpoint | null> {
  const node = await plans.node(ref);
  const reference = klReferenceOf(node);
  if (reference === null) return null;
  const stage = (await plans.inputs(ref)).find(({ id }) => id === reference);
  return stage ? publishedCheckpoint(stage) : baseCheckpoint(node); // a reference that is no input is the base
}

const klReferenceOf = (node: PlanNode): string | null =>
  node.kind === 'rl' ? (nodeOf('rl', node).parameters.algorithm.kl?.reference ?? null) : null;

const publishedCheckpoint = ({ manifest }: NodeInput): Checkpoint =>
  checkpointOf(manifest.body as unknown as CheckpointBody);

function baseCheckpoint(node: PlanNode): Checkpoint {
  const { policy } = node.parameters as unknown as { policy: PolicyParameters };
  return checkpointOf({ model: policy.model, model_sha256: policy.sha256, adapters: [] });
}

export const createResolveCheckpointActivities = ({ plans }: { plans: PlanReader }) => ({
  /** The weights a node samples from. */
  resolveCheckpoint: (node: NodeRef): Promise<Checkpoint> => parentCheckpoint(plans, node),
});
