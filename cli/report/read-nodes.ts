/** The distinct nodes of a run, each with what happened to it and what it published. */
import type { Manifest, Metric } from '../../schemas/artifact.ts';
import type { Plan, PlanNode } from '../../schemas/plan.ts';
import type { Stack } from '../open-stack.ts';
import { nodeNames } from '../run-history.ts';
import type { NodeState, RunState } from '../run-state.ts';
import type { ReportedNode } from './document.ts';

export interface NodeFacts {
  node: PlanNode;
  reported: ReportedNode;
  manifest: Manifest | null;
}

export async function readNodes({ store }: Stack, plan: Plan, state: RunState): Promise<NodeFacts[]> {
  const names = nodeNames(plan);
  const states = statesByKey(state);
  const distinct = new Map(plan.arms.flatMap(({ nodes }) => nodes.map((node) => [node.key, node] as const)));
  const artifacts = await store.findAll([...distinct.keys()]);
  return Promise.all(
    [...distinct.values()].map(async (node): Promise<NodeFacts> => {
      const artifact = artifacts.get(node.key);
      const manifest = artifact === undefined ? null : await store.manifest(artifact);
      const having = plan.arms.filter(({ nodes }) => nodes.some(({ key }) => key === node.key));
      const keyOf = (id: string): string | undefined => having[0]?.nodes.find((one) => one.id === id)?.key;
      const live = states.get(node.key);
      const reported: ReportedNode = {
        name: names.get(node.key) ?? node.id,
        kind: node.kind,
        kind_version: node.kind_version,
        key: node.key,
        seed: node.seed,
        status: live?.status ?? 'waiting',
        arms: having.map(({ name }) => name),
        inputs: node.inputs.map((id) => names.get(keyOf(id) ?? '') ?? id),
        attempts: live?.attempts ?? 0,
        started_ms: live?.started_at?.getTime() ?? null,
        ended_ms: live?.ended_at?.getTime() ?? null,
        detail: live?.detail ?? '',
        error: live?.error ?? null,
        artifact:
          manifest === null || artifact === undefined
            ? null
            : {
                digest: artifact.digest,
                generation: artifact.generation,
                bytes: manifest.files.reduce((sum, { bytes }) => sum + bytes, 0),
                made_with: manifest.made_with,
              },
      };
      return { node, reported, manifest };
    }),
  );
}

/** Arms that share a node saw the same work; where one of them did it, it was not reused. */
function statesByKey({ arms }: RunState): Map<string, NodeState> {
  const states = new Map<string, NodeState>();
  for (const node of arms.flatMap(({ nodes }) => nodes)) {
    const known = states.get(node.key);
    if (known === undefined || known.status === 'reused' || known.status === 'waiting') states.set(node.key, node);
  }
  return states;
}

export const bodiesOf = <Body>(nodes: readonly NodeFacts[], kind: string): { node: string; body: Body }[] =>
  nodes.flatMap(({ node, reported, manifest }) =>
    node.kind === kind && manifest !== null ? [{ node: reported.name, body: manifest.body as unknown as Body }] : [],
  );

/** Curves of a node: as its artifact holds them, or what it recorded so far. */
export async function metricsOf({ pool }: Stack, { node, manifest }: NodeFacts): Promise<Metric[]> {
  if (manifest !== null) return manifest.metrics;
  const { rows } = await pool.query<Omit<Metric, 'timestamp_ms'>>(
    'select name, step, value from node_metrics where key = $1 order by name, step',
    [node.key],
  );
  return rows.map((row) => ({ ...row, timestamp_ms: 0 }));
}
