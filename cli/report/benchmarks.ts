import type { BenchmarkBody } from '../../schemas/artifact.ts';
import { canonicalJson } from '../../schemas/canonical.ts';
import type { Experiment } from '../../schemas/experiment.ts';
import { publishedFor } from '../comparison.ts';
import type { ReportedBenchmark } from './document.ts';
import type { NodeFacts } from './read-nodes.ts';

/** One table for each benchmark and protocol: results of unequal protocols never share a column. */
export function groupBenchmarks(
  bodies: readonly { node: string; body: BenchmarkBody }[],
  nodes: readonly NodeFacts[],
  spec: Pick<Partial<Experiment>, 'references'>,
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
      references: publishedFor(body.benchmark, spec.references),
    };
    tables.set(id, table);
    table.rows.push({ node, arms: arms.get(node) ?? [], body });
    table.metrics = [...new Set([...table.metrics, ...Object.keys(body.results)])];
  }
  return [...tables.values()];
}
