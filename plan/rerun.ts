/** A plan whose nodes run again from one on. */
import { contentKey } from '../schemas/canonical.ts';
import type { Plan, PlanNode } from '../schemas/plan.ts';
import { nodeKey } from './node-key.ts';

/**
 * The plan with a nonce in the key of the nodes that `isFirst` names, and so with new keys for all that reads them;
 * every other node keeps its key. Arms that shared such a node still share it.
 */
export function withNonce(plan: Plan, isFirst: (arm: string, id: string) => boolean, nonce: string): Plan {
  return {
    ...plan,
    run_key: contentKey({ run_key: plan.run_key, nonce }),
    arms: plan.arms.map((arm) => ({ ...arm, nodes: rerunNodes(arm.nodes, (id) => isFirst(arm.name, id), nonce) })),
  };
}

function rerunNodes(nodes: readonly PlanNode[], isFirst: (id: string) => boolean, nonce: string): PlanNode[] {
  const keys = new Map(nodes.map(({ id, key }) => [id, key]));
  const anew = new Set<string>();
  return nodes.map((node) => {
    const first = isFirst(node.id);
    if (!first && !node.inputs.some((input) => anew.has(input))) return node;
    anew.add(node.id);
    const changed = first ? { ...node, nonce } : node;
    const inputs = node.inputs.map((input) => keys.get(input) as string);
    const key = nodeKey(changed, inputs);
    keys.set(node.id, key);
    return { ...changed, key };
  });
}
