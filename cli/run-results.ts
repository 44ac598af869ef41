/** What a run found: one table of its benchmarks, read from their artifacts, and how long each node took. */

import type { ArtifactStore } from '../activities/adapters/artifact-store.ts';
import type { BenchmarkBody } from '../schemas/artifact.ts';
import { nodeSeconds } from './live-view.ts';
import { allNodes, type RunState } from './run-state.ts';
import { nodeName, sharedNodes } from './shared-nodes.ts';
import { clock, renderTable, type Terminal } from './terminal.ts';

type Interval = BenchmarkBody['results'][string];

export interface BenchmarkResult {
  arm: string;
  node: string;
  body: BenchmarkBody;
}

/** Bodies of all published benchmark nodes, in plan order. */
export async function readResults(store: ArtifactStore, state: RunState): Promise<BenchmarkResult[]> {
  const wanted = allNodes(state).filter(({ kind }) => kind === 'benchmark');
  const published = await store.findAll(wanted.map(({ key }) => key));
  const results = wanted.map(async ({ arm, id, key }) => {
    const artifact = published.get(key);
    if (!artifact) return [];
    const { body } = await store.manifest(artifact);
    return [{ arm, node: id, body: body as unknown as BenchmarkBody }];
  });
  return (await Promise.all(results)).flat();
}

/** One table per benchmark: a row for each checkpoint it was run after, then the baselines. */
export function renderResults(results: readonly BenchmarkResult[], terminal: Terminal): string[] {
  const names = [...new Set(results.map(({ body }) => body.benchmark))];
  return names.flatMap((name) =>
    renderBenchmark(
      name,
      results.filter(({ body }) => body.benchmark === name),
      terminal,
    ),
  );
}

function renderBenchmark(name: string, results: readonly BenchmarkResult[], terminal: Terminal): string[] {
  const metrics = [...new Set(results.flatMap(({ body }) => Object.keys(body.results)))];
  const severalArms = new Set(results.map(({ arm }) => arm)).size > 1;
  const label = ({ arm, body }: BenchmarkResult): string => (severalArms ? `${arm} / ${body.after}` : body.after);
  const rows = results.map((result) => [
    label(result),
    ...metrics.map((metric) => percent(result.body.results[metric])),
    percent({ value: result.body.answer_in_observation }),
    String(result.body.unfinished),
  ]);
  const [first] = results;
  const asked = first ? `${first.body.questions} questions × ${first.body.samples}, per cent with 95 % intervals` : '';
  return [
    '',
    `${name}: ${terminal.unicode ? asked : asked.replace('×', 'x')}`,
    ...renderTable(
      terminal,
      [
        { title: 'after' },
        ...metrics.map((metric) => ({ title: metric.replace('_at_', '@'), align: 'right' as const })),
        { title: 'answer seen', align: 'right' },
        { title: 'unfinished', align: 'right' },
      ],
      [...rows, ...baselineRows(results, metrics, label)],
    ),
  ];
}

/** A baseline that came out the same after every checkpoint is one row; else it is one row for each. */
function baselineRows(
  results: readonly BenchmarkResult[],
  metrics: readonly string[],
  label: (result: BenchmarkResult) => string,
): string[][] {
  const column = Math.max(
    0,
    metrics.findIndex((metric) => metric.startsWith('avg_at_')),
  );
  const cells = (title: string, value: Interval | undefined): string[] => [
    title,
    ...metrics.map((_, at) => (at === column ? percent(value) : '')),
    '',
    '',
  ];
  return [...new Set(results.flatMap(({ body }) => Object.keys(body.baselines)))].flatMap((baseline) => {
    const having = results.filter(({ body }) => body.baselines[baseline]);
    const distinct = new Set(having.map(({ body }) => JSON.stringify(body.baselines[baseline])));
    const title = baseline.replaceAll('_', ' ');
    if (distinct.size === 1) return [cells(title, having[0]?.body.baselines[baseline])];
    return having.map((result) => cells(`${title} (${label(result)})`, result.body.baselines[baseline]));
  });
}

function percent(interval: { value: number; low?: number; high?: number } | undefined): string {
  if (!interval) return '';
  const show = (share: number): string => (100 * share).toFixed(1);
  if (interval.low === undefined || interval.high === undefined) return show(interval.value);
  return `${show(interval.value)} [${show(interval.low)}, ${show(interval.high)}]`;
}

/** Every node with how it ended and how long it took. */
export function renderTimes(state: RunState, terminal: Terminal): string[] {
  const rows = sharedNodes(state).map((node) => {
    const seconds = nodeSeconds(node, state.ended_at ?? new Date());
    return [nodeName(node, state.arms.length), node.kind, node.status, seconds === null ? '' : clock(seconds)];
  });
  return [
    '',
    ...renderTable(
      terminal,
      [{ title: 'node' }, { title: 'kind' }, { title: 'status' }, { title: 'time', align: 'right' }],
      rows,
    ),
  ];
}

/** The end of a run in words: results, and where to look further. `withTimes` where no picture shows them already. */
export async function describeEnd(
  store: ArtifactStore,
  state: RunState,
  terminal: Terminal,
  options: { withTimes: boolean },
): Promise<string[]> {
  const results = await readResults(store, state);
  const next = state.status === 'failed' || state.status === 'cancelled' ? [`to go on: exp resume ${state.run}`] : [];
  return [
    ...(options.withTimes ? renderTimes(state, terminal) : []),
    ...renderResults(results, terminal),
    '',
    ...(state.mlflow_url ? [`MLflow: ${state.mlflow_url}`] : []),
    ...next,
  ];
}
