/** Which nodes have an artifact already. The store is asked by the caller, so that planning stays pure. */
import type { Unkeyed } from '../schemas/node-parameters.ts';
import type { PlanArm, PlanNode } from '../schemas/plan.ts';

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
  arm: string;
  id: string;
  action: 'run' | 'reuse';
  reason: string;
}

type Decision = Pick<NodeAction, 'action' | 'reason'>;

/**
 * Reuse an artifact while the artifacts it was made from are still the current ones, and what an earlier arm makes.
 * One action per node, in the order of arms and nodes. `lookup` null: nobody can say what exists.
 */
export async function decideActions(arms: readonly PlanArm[], lookup: ArtifactLookup | null): Promise<NodeAction[]> {
  const found = await lookup?.([...new Set(arms.flatMap(({ nodes }) => nodes.map(({ key }) => key)))]);
  const makers = new Map<string, string>();
  return arms.flatMap(({ name: arm, nodes }) => {
    const decided = new Map<string, Decision>();
    for (const node of nodes) {
      decided.set(
        node.id,
        found ? decide(node, nodes, found, decided) : { action: 'run', reason: 'stack is down: reuse unknown' },
      );
    }
    return nodes.map(({ id, key }): NodeAction => {
      const maker = makers.get(key);
      const decision = decided.get(id) as Decision;
      if (decision.action === 'run' && maker === undefined) makers.set(key, arm);
      return decision.action === 'run' && maker !== undefined
        ? { arm, id, action: 'reuse', reason: `made once, for ${maker}` }
        : { arm, id, ...decision };
    });
  });
}

function decide(
  { key, inputs, unkeyed }: PlanNode,
  nodes: readonly PlanNode[],
  found: ReadonlyMap<string, FoundArtifact>,
  decided: ReadonlyMap<string, Decision>,
): Decision {
  const { unknown = [], reused_from } = unkeyed as Unkeyed;
  if (unknown.length > 0) return { action: 'run', reason: `key unknown: ${unknown.join(', ')} not known` };
  const artifact = found.get(key);
  if (artifact === undefined) return { action: 'run', reason: 'no artifact has this key' };
  const rerun = inputs.find((input) => decided.get(input)?.action === 'run');
  if (rerun !== undefined) return { action: 'run', reason: `${rerun} runs; reused only if that comes out as before` };
  const stale = artifact.inputs.find((input) => found.has(input.key) && found.get(input.key)?.digest !== input.digest);
  if (stale !== undefined) {
    const name = nodes.find((node) => node.key === stale.key)?.id ?? 'an input';
    return { action: 'run', reason: `${name} has been made anew since` };
  }
  if (!artifact.is_live) return { action: 'run', reason: 'what it describes is no longer in the services' };
  const made = Object.entries(artifact.made_with).map(([name, value]) => `${name} ${value}`);
  return {
    action: 'reuse',
    reason: `${reused_from === undefined ? '' : `taken from ${reused_from}, `}made ${artifact.created_at.slice(0, 16).replace('T', ' ')}${made.length > 0 ? ` with ${made.join(', ')}` : ''}`,
  };
}
