/** Finding a node of a plan by the name a person gives it. */
import { ExpError } from '../schemas/errors.ts';
import type { Plan, PlanArm, PlanNode } from '../schemas/plan.ts';

/** A node once, with the arms that share it. */
export interface SharedNode {
  node: PlanNode;
  /** The first of the arms. */
  arm: PlanArm;
  arms: string[];
}

/** Nodes meant by `ID` (in every arm) or `ARM/ID`, each key once. Throws NODE_UNKNOWN. */
export function nodesNamed({ arms }: Pick<Plan, 'arms'>, wanted: string, at: string): SharedNode[] {
  const found = new Map<string, SharedNode>();
  for (const arm of arms) {
    const node = arm.nodes.find(({ id }) => id === wanted || `${arm.name}/${id}` === wanted);
    if (node === undefined) continue;
    const known = found.get(node.key);
    if (known) known.arms.push(arm.name);
    else found.set(node.key, { node, arm, arms: [arm.name] });
  }
  if (found.size > 0) return [...found.values()];
  const ids = [...new Set(arms.flatMap(({ nodes }) => nodes.map(({ id }) => id)))];
  const names = arms.length > 1 ? ` (or ARM/NODE with ${arms.map(({ name }) => name).join(', ')})` : '';
  throw new ExpError('NODE_UNKNOWN', `${at} ${wanted}`, `there is no such node; there are ${ids.join(', ')}${names}`);
}

/** The one node meant. Throws NODE_UNKNOWN, and NODE_AMBIGUOUS where arms have different nodes of this id. */
export function nodeNamed(plan: Pick<Plan, 'arms'>, wanted: string, at: string): SharedNode {
  const [first, ...others] = nodesNamed(plan, wanted, at) as [SharedNode, ...SharedNode[]];
  if (others.length === 0) return first;
  const names = [first, ...others].map(({ arm, node }) => `${arm.name}/${node.id}`);
  throw new ExpError('NODE_AMBIGUOUS', `${at} ${wanted}`, `arms have different ones; say one of ${names.join(', ')}`);
}
