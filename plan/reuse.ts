/** Which nodes have an artifact already. The store is asked by the caller, so that planning stays pure. */
import type { Unkeyed } from '../schemas/node-parameters.ts';
import type { PlanNode } from '../schemas/plan.ts';

/** What the store has under a key. */
export interface FoundArtifact {
  generation: number;
  digest: string;
  made_with: Record<string, string>;
  created_at: string;
  /** Artifacts it was made from. */
  inputs: { key: string; digest: string }[];
  /** False when pages or an index that it describes are no longer in the services. */
  is_live: boolean;
}

/** Artifacts by key; keys that have none are absent. */
export type ArtifactLookup = (keys: readonly string[]) => Promise<Map<string, FoundArtifact>>;

export interface NodeAction {
  id: string;
  action: 'run' | 'reuse';
  reason: string;
}

/**
 * Reuse an artifact while the artifacts it was made from are still the current ones.
 * `lookup` null: nobody can say what exists, so everything is planned to run.
 */
export async function decideActions(nodes: readonly PlanNode[], lookup: ArtifactLookup | null): Promise<NodeAction[]> {
  if (lookup === null) return nodes.map(({ id }) => ({ id, action: 'run', reason: 'stack is down: reuse unknown' }));
  const found = await lookup(nodes.map(({ key }) => key));
  const decided = new Map<string, NodeAction>();
  for (const node of nodes) decided.set(node.id, decide(node, nodes, found, decided));
  return [...decided.values()];
}

function decide(
  { id, key, inputs, unkeyed }: PlanNode,
  nodes: readonly PlanNode[],
  found: ReadonlyMap<string, FoundArtifact>,
  decided: ReadonlyMap<string, NodeAction>,
): NodeAction {
  const unknown = (unkeyed as Unkeyed).unknown ?? [];
  if (unknown.length > 0) return { id, action: 'run', reason: `key unknown: ${unknown.join(', ')} not known` };
  const artifact = found.get(key);
  if (artifact === undefined) return { id, action: 'run', reason: 'no artifact has this key' };
  const rerun = inputs.find((input) => decided.get(input)?.action === 'run');
  if (rerun !== undefined)
    return { id, action: 'run', reason: `${rerun} runs; reused only if that comes out as before` };
  const stale = artifact.inputs.find((input) => found.has(input.key) && found.get(input.key)?.digest !== input.digest);
  if (stale !== undefined) {
    const name = nodes.find((node) => node.key === stale.key)?.id ?? 'an input';
    return { id, action: 'run', reason: `${name} has been made anew since` };
  }
  if (!artifact.is_live) return { id, action: 'run', reason: 'what it describes is no longer in the services' };
  const made = Object.entries(artifact.made_with).map(([name, value]) => `${name} ${value}`);
  return {
    id,
    action: 'reuse',
    reason: `made ${artifact.created_at.slice(0, 16).replace('T', ' ')}${made.length > 0 ? ` with ${made.join(', ')}` : ''}`,
  };
}
