/** Two plans beside each other: what their specs say, which nodes they share, and what their benchmarks found. */
import type { ArtifactStore } from '../activities/adapters/artifact-store.ts';
import { changedLeaves, type KeyChange, keyChanges, type LeafChange, pairArms } from '../plan/diff.ts';
import type { BenchmarkBody } from '../schemas/artifact.ts';
import type { Plan, PlanArm, PlanNode } from '../schemas/plan.ts';

type Interval = BenchmarkBody['results'][string];

export interface NodeDifference {
  /** Arms in which these two nodes stand; of the second plan where names differ. */
  arms: string[];
  id: string;
  kind: string;
  /** Keys; null where a plan has no such node. */
  a: string | null;
  b: string | null;
  shared: boolean;
  /** How the key of the second differs from that of the first. */
  changes: KeyChange[];
}

export interface ResultDifference {
  arms: string[];
  node: string;
  metric: string;
  a: Interval | null;
  b: Interval | null;
}

export interface PlanDifference {
  spec: LeafChange[];
  arms: { only_a: string[]; only_b: string[]; changed: { arm: string; changes: LeafChange[] }[] };
  nodes: NodeDifference[];
  /** Null when nobody could be asked. */
  results: ResultDifference[] | null;
}

/** Null for `store`: no results are read. */
export async function differPlans(a: Plan, b: Plan, store: ArtifactStore | null): Promise<PlanDifference> {
  const pairs = pairArms(a.arms, b.arms);
  const nodes = nodeDifferences(pairs);
  const paired = new Set(pairs.flat());
  const unpaired = (plan: Plan): string[] => plan.arms.filter((arm) => !paired.has(arm)).map(({ name }) => name);
  return {
    spec: changedLeaves(a.spec, b.spec),
    arms: {
      only_a: unpaired(a),
      only_b: unpaired(b),
      changed: pairs
        .map(([before, after]) => ({ arm: after.name, changes: changedLeaves(before.changes, after.changes) }))
        .filter(({ changes }) => changes.length > 0),
    },
    nodes,
    results: store && (await resultDifferences(nodes, store)),
  };
}

/** One row for each pair of nodes, however many arms have it. */
function nodeDifferences(pairs: readonly [PlanArm, PlanArm][]): NodeDifference[] {
  const rows = new Map<string, NodeDifference>();
  for (const [before, after] of pairs) {
    const ids = new Set([...after.nodes, ...before.nodes].map(({ id }) => id));
    for (const id of ids) {
      const [old, now] = [before, after].map(({ nodes }) => nodes.find((node) => node.id === id));
      const name = `${id} ${old?.key} ${now?.key}`;
      const known = rows.get(name);
      if (known) known.arms.push(after.name);
      else rows.set(name, nodeDifference(old, now, { arm: after.name, before, after }));
    }
  }
  return [...rows.values()];
}

function nodeDifference(
  old: PlanNode | undefined,
  now: PlanNode | undefined,
  { arm, before, after }: { arm: string; before: PlanArm; after: PlanArm },
): NodeDifference {
  const { id, kind } = (now ?? old) as PlanNode;
  const changes = old && now ? keyChanges({ node: old, nodes: before.nodes }, { node: now, nodes: after.nodes }) : [];
  const keys = { a: old?.key ?? null, b: now?.key ?? null };
  return { arms: [arm], id, kind, ...keys, shared: keys.a === keys.b, changes };
}

async function resultDifferences(nodes: readonly NodeDifference[], store: ArtifactStore): Promise<ResultDifference[]> {
  const benchmarks = nodes.filter(({ kind }) => kind === 'benchmark');
  const keys = benchmarks.flatMap(({ a, b }) => [a, b]).filter((key) => key !== null);
  const published = await store.findAll([...new Set(keys)]);
  const resultsOf = async (key: string | null): Promise<BenchmarkBody['results']> => {
    const ref = key === null ? undefined : published.get(key);
    return ref === undefined ? {} : ((await store.manifest(ref)).body as unknown as BenchmarkBody).results;
  };
  const rows = benchmarks.map(async ({ arms, id, a: keyA, b: keyB }) => {
    const [a, b] = await Promise.all([resultsOf(keyA), resultsOf(keyB)]);
    const metrics = new Set([...Object.keys(a), ...Object.keys(b)]);
    return [...metrics].map((metric) => ({ arms, node: id, metric, a: a[metric] ?? null, b: b[metric] ?? null }));
  });
  return (await Promise.all(rows)).flat();
}
