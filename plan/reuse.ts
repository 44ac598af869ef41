/** Which nodes have an artifact already. The store is asked by the caller, so that planning stays pure. */
import type { Unkeyed } from '../schemas/node-parameters.ts';
import type { PlanArm, PlanNode } from '../schemas/plan.ts';
import type { KeyChange } from './diff.ts';
import { type EarlierPlan, nearestEarlier, nearestText } from './why.ts';

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
  /** Where no artifact has the key, and an earlier run had such a node: how the key differs from that one's. */
  since?: { run: string; changes: KeyChange[] };
}

type Decision = Pick<NodeAction, 'action' | 'reason' | 'since'>;

/**
 * Reuse an artifact while the artifacts it was made from are still the current ones, and what an earlier arm makes.
 * One action per node, in the order of arms and nodes. `lookup` null: nobody can say what exists. `earlier`, newest
 * first, is what a node without an artifact is compared with.
 */
export async function decideActions(
  arms: readonly PlanArm[],
  lookup: ArtifactLookup | null,
  earlier: readonly EarlierPlan[] = [],
): Promise<NodeAction[]> {
  const found = await lookup?.([...new Set(arms.flatMap(({ nodes }) => nodes.map(({ key }) => key)))]);
  const makers = new Map<string, string>();
  // Arms that share a node share the reason.
  const reasons = new Map<string, Decision>();
  return arms.flatMap(({ name: arm, nodes }) => {
    const decided = new Map<string, Decision>();
    const missing = (node: PlanNode): Decision => {
      const decision = reasons.get(node.key) ?? withoutArtifact(node, { name: arm, nodes }, earlier);
      reasons.set(node.key, decision);
      return decision;
    };
    for (const node of nodes) {
      decided.set(
        node.id,
        found
          ? decide(node, nodes, found, decided, missing)
          : { action: 'run', reason: 'stack is down: reuse unknown' },
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

function withoutArtifact(
  node: PlanNode,
  arm: Pick<PlanArm, 'name' | 'nodes'>,
  earlier: readonly EarlierPlan[],
): Decision {
  const nearest = nearestEarlier(node, arm, earlier);
  if (nearest === null) return { action: 'run', reason: 'no artifact has this key' };
  const { run, changes } = nearest;
  return { action: 'run', reason: nearestText(nearest), since: { run, changes } };
}

function decide(
  node: PlanNode,
  nodes: readonly PlanNode[],
  found: ReadonlyMap<string, FoundArtifact>,
  decided: ReadonlyMap<string, Decision>,
  missing: (node: PlanNode) => Decision,
): Decision {
  const { key, inputs, unkeyed } = node;
  const { unknown = [], reused_from } = unkeyed as Unkeyed;
  if (unknown.length > 0) return { action: 'run', reason: `key unknown: ${unknown.join(', ')} not known` };
  const artifact = found.get(key);
  if (artifact === undefined) return missing(node);
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
