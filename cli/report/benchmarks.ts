import type { BenchmarkBody } from '../../schemas/artifact.ts';
import { canonicalJson } from '../../schemas/canonical.ts';
import type { ReportedBenchmark } from './document.ts';
import type { NodeFacts } from './read-nodes.ts';

/** One table for each benchmark and protocol: results of unequal protocols never share a column. */
export function groupBenchmarks(
  bodies: readonly { node: string; body: BenchmarkBody }[],
  nodes: readonly NodeFacts[],
  spec: Record<string, unknown>,
): ReportedBenchmark[] {
  const arms = new Map(nodes.map(({ reported }) => [reported.name, reported.arms]));
  const tables = new Map<string, ReportedBenchmark>();
  for (const { node, body: whole } of bodies) {
    const { protocol, ...body } = whole;
    const id = `${body.benchmark}\n${canonicalJson(protocol)}`;
    const others = [...tables.values()].filter(({ rows }) => rows[0]?.body.benchmark === body.benchmark).length;
    const table = tables.get(id) ?? {
      name: others === 0 ? body.benchmark : `${body.benchmark}, protocol ${others + 1}`,
      metrics: [],
      questions: body.questions,
      samples: body.samples,
      rows: [],
      protocol,
      references: referencesOf(body.benchmark, spec),
    };
    tables.set(id, table);
    table.rows.push({ node, arms: arms.get(node) ?? [], body });
    table.metrics = [...new Set([...table.metrics, ...Object.keys(body.results)])];
  }
  return [...tables.values()];
}

/** `references: { name: { world, benchmark: per cent } }`: published numbers, of their own protocol. */
function referencesOf(benchmark: string, { references }: Record<string, unknown>): ReportedBenchmark['references'] {
  const named = (references ?? {}) as Record<string, Record<string, unknown>>;
  return Object.entries(named).flatMap(([name, numbers]) => {
    const value = numbers[benchmark];
    return typeof value === 'number' ? [{ name, world: String(numbers['world'] ?? ''), value: value / 100 }] : [];
  });
}
