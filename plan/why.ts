/** Why a node has no artifact: what its key has that the key of the nearest earlier one has not. */
import type { Plan, PlanArm, PlanNode } from '../schemas/plan.ts';
import { changeText, type KeyChange, keyChanges } from './diff.ts';

/** The frozen plan of an earlier run. */
export interface EarlierPlan {
  run: string;
  plan: Pick<Plan, 'arms'>;
}

/** How a node differs from the nearest earlier one of its id. */
export interface NearestEarlier {
  run: string;
  arm: string;
  /** Empty where the key is the same. */
  changes: KeyChange[];
}

/** The earlier node with the fewest changes; of several the newest. `earlier` is newest first. Null where there is none. */
export function nearestEarlier(
  node: PlanNode,
  arm: Pick<PlanArm, 'name' | 'nodes'>,
  earlier: readonly EarlierPlan[],
): NearestEarlier | null {
  const candidates = earlier.flatMap(({ run, plan }) =>
    armsLike(arm.name, node.id, plan.arms).map((other): NearestEarlier => {
      const before = other.nodes.find(({ id }) => id === node.id) as PlanNode;
      const changes = keyChanges({ node: before, nodes: other.nodes }, { node, nodes: arm.nodes });
      return { run, arm: other.name, changes };
    }),
  );
  const [first, ...others] = candidates;
  if (first === undefined) return null;
  return others.reduce((best, one) => (one.changes.length < best.changes.length ? one : best), first);
}

/** A sweep has up to a thousand arms; among so many of them the nearest is near enough. */
const COMPARED_ARMS = 16;

/**
 * The arm of the same name, else arms that have such a node, each key once: a new arm is near to whichever it was made
 * from.
 */
function armsLike(name: string, id: string, arms: readonly PlanArm[]): PlanArm[] {
  const byKey = new Map<string, PlanArm>();
  for (const arm of arms) {
    const key = arm.nodes.find((node) => node.id === id)?.key;
    if (key === undefined) continue;
    if (arm.name === name) return [arm];
    if (!byKey.has(key)) byKey.set(key, arm);
  }
  return [...byKey.values()].slice(0, COMPARED_ARMS);
}

/** `rollout.temperature: 1 → 0.7, and 2 more, since recipe-261121-0a1b2c`. */
export function nearestText({ run, changes }: NearestEarlier): string {
  const [first] = changes;
  if (first === undefined) return `${run} asked for it too, and its artifact is not there`;
  const more = changes.length > 1 ? `, and ${changes.length - 1} more` : '';
  return `${changeText(first)}${more}, since ${run}`;
}
