/** Nodes of a run as they are executed: once, however many arms need them. */
import type { NodeState, NodeStatus, RunState } from './run-state.ts';

/** A node with the arms that need it, in their order. */
export interface SharedNodeState extends NodeState {
  arms: string[];
}

/** Nodes that the same arms need. */
export interface NodeSection {
  arms: string[];
  nodes: SharedNodeState[];
}

/** What tells most of a node that arms see differently: one may not have begun, and one finds what another made. */
const TELLING: readonly NodeStatus[] = [
  'running',
  'paused',
  'failed',
  'gate_failed',
  'done',
  'reused',
  'cancelled',
  'skipped',
  'waiting',
];

/** Every node once, in the order in which arms need them. */
export function sharedNodes({ arms }: Pick<RunState, 'arms'>): SharedNodeState[] {
  const merged = new Map<string, SharedNodeState>();
  for (const { arm, nodes } of arms) {
    for (const node of nodes) {
      const name = `${node.id} ${node.key}`;
      const known = merged.get(name);
      const told = known === undefined || rank(node) < rank(known) ? node : known;
      merged.set(name, { ...told, arms: [...(known?.arms ?? []), arm] });
    }
  }
  return [...merged.values()];
}

const rank = ({ status }: NodeState): number => TELLING.indexOf(status);

/** Nodes by the arms that need them, in the order in which they first appear. */
export function nodeSections(state: Pick<RunState, 'arms'>): NodeSection[] {
  const sections = new Map<string, NodeSection>();
  for (const node of sharedNodes(state)) {
    const name = node.arms.join('\n');
    const section = sections.get(name);
    if (section) section.nodes.push(node);
    else sections.set(name, { arms: node.arms, nodes: [node] });
  }
  return [...sections.values()];
}

const NAMED_ARMS = 3;

/** `all arms`, `control`, `control, cool and 4 more`. */
export function armsText(arms: readonly string[], total: number): string {
  if (arms.length === total && total > 1) return 'all arms';
  if (arms.length <= NAMED_ARMS) return arms.join(', ');
  return `${arms.slice(0, NAMED_ARMS - 1).join(', ')} and ${arms.length - NAMED_ARMS + 1} more`;
}

/** A node by name: alone where every arm has it, else with whose it is. */
export function nodeName({ id, arms }: Pick<SharedNodeState, 'id' | 'arms'>, total: number): string {
  if (arms.length === total) return id;
  return arms.length === 1 ? `${arms[0]}/${id}` : `${id} (${armsText(arms, total)})`;
}
