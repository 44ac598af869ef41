import type { CheckpointBody } from '../schemas/artifact.ts';
import { contentKey } from '../schemas/canonical.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import type { PolicyParameters } from '../schemas/node-parameters.ts';
import type { NodeRef } from './index.ts';
import type { PlanReader } from './plan-reader.ts';

/** The weights named by a base model and the adapters merged onto it, in order. */
export function checkpointOf({ model, model_sha256, adapters }: Omit<Checkpoint, 'digest'>): Checkpoint {
  return { model, model_sha256, adapters, digest: contentKey({ model_sha256, adapters }) };
}

/** What a node starts from: the checkpoint of its sft or rl input, or the policy's base. */
export async function parentCheckpoint(plans: PlanReader, ref: NodeRef): Promise<Checkpoint> {
  const parent = (await plans.inputs(ref)).find(({ kind }) => kind === 'sft' || kind === 'rl');
  if (parent) return checkpointOf(parent.manifest.body as unknown as CheckpointBody);
  const { policy } = (await plans.node(ref)).parameters as { policy: PolicyParameters };
  return checkpointOf({ model: policy.model, model_sha256: policy.sha256, adapters: [] });
}

export const createResolveCheckpointActivities = ({ plans }: { plans: PlanReader }) => ({
  /** The weights a node samples from. */
  resolveCheckpoint: (node: NodeRef): Promise<Checkpoint> => parentCheckpoint(plans, node),
});
