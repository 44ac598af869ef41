/** Why a node of a run ran or was reused: its key, the artifact under it, and the nearest node of an earlier run. */
import type { KeyChange } from '../plan/diff.ts';
import { nearestEarlier } from '../plan/why.ts';
import type { Manifest } from '../schemas/artifact.ts';
import type { Plan, PlanNode } from '../schemas/plan.ts';
import { readEarlierPlans } from './earlier-plans.ts';
import type { Stack } from './open-stack.ts';
import { nodeNamed, type SharedNode } from './plan-node.ts';
import { type NodeStatus, RunReader, type RunRow } from './run-state.ts';

export interface MadeArtifact extends Pick<Manifest, 'created_at' | 'made_with' | 'inputs'> {
  generation: number;
  digest: string;
}

export interface NodeExplanation {
  run: string;
  /** Arms that share the node. */
  arms: string[];
  node: string;
  status: NodeStatus;
  error: string | null;
  /** All that its key is made of; inputs are named by id and enter by key. */
  key: Omit<PlanNode, 'id' | 'unkeyed' | 'inputs'> & { inputs: { id: string; key: string }[] };
  /** The newest artifact under the key; null where there is none. */
  made: MadeArtifact | null;
  /** The nearest node of an earlier run, and how the key differs from that one's; null where there was none. */
  since: { run: string; arm: string; changes: KeyChange[] } | null;
}

export async function explainNode(stack: Stack, row: RunRow, wanted: string): Promise<NodeExplanation> {
  const plan = await stack.store.readJson<Plan>(row.plan_blob);
  const shared = nodeNamed(plan, wanted, row.id);
  const made = await readMade(stack, shared.node.key);
  const { status, error } = await statusOf(stack, row, shared, made);
  const earlier = await readEarlierPlans(stack, { name: plan.name, profile: plan.profile, before: row.created_at });
  const { id, inputs, unkeyed: _, ...key } = shared.node;
  const keyOf = (input: string): string => shared.arm.nodes.find((node) => node.id === input)?.key ?? '';
  return {
    run: row.id,
    arms: shared.arms,
    node: id,
    status,
    error,
    key: { ...key, inputs: inputs.map((input) => ({ id: input, key: keyOf(input) })) },
    made,
    since: nearestEarlier(shared.node, shared.arm, earlier),
  };
}

async function readMade({ store }: Stack, key: string): Promise<MadeArtifact | null> {
  const ref = await store.find(key);
  if (ref === null) return null;
  const { created_at, made_with, inputs } = await store.manifest(ref);
  return { generation: ref.generation, digest: ref.digest, created_at, made_with, inputs };
}

/** A resumed run reuses what it made before it was resumed: that node ran all the same. */
async function statusOf(
  stack: Stack,
  row: RunRow,
  { node, arm }: SharedNode,
  made: MadeArtifact | null,
): Promise<{ status: NodeStatus; error: string | null }> {
  const state = await new RunReader(stack, row.id).read();
  const found = state.arms.find((one) => one.arm === arm.name)?.nodes.find(({ id }) => id === node.id);
  const { status = 'waiting', error = null } = found ?? {};
  const isOwn = made !== null && new Date(made.created_at) >= row.created_at;
  return { status: status === 'reused' && isOwn ? 'done' : status, error };
}
