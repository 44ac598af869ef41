import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type {
  BenchmarkBody,
  CorpusBody,
  Manifest,
  ProfileBody,
  TasksBody,
  TrajectoriesBody,
} from '../schemas/artifact.ts';
import type { NodeKind, PlanNode } from '../schemas/plan.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { CpuActivities } from './index.ts';
import type { PlanReader } from './plan-reader.ts';

export interface ReportDeps {
  plans: PlanReader;
  store: ArtifactStore;
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
  /** Scratch space. */
  work: string;
}

/** What a run found, with what it stands on. `report.json` holds it as data, `report.md` as tables. */
export interface Report {
  benchmarks: BenchmarkBody[];
  tasks: TasksBody | null;
  corpus: Pick<CorpusBody, 'pages' | 'sources'> | null;
  demonstrations: Record<string, TrajectoriesBody>;
  profiles: Record<string, ProfileBody>;
}

export const createReportActivities = ({
  plans,
  store,
  progress,
  work,
}: ReportDeps): Pick<CpuActivities, 'report'> => ({
  /** One table over all benchmarks of an arm. Everything in it is read from artifacts, so it says nothing they do not. */
  async report(ref) {
    const nodes = await plans.nodes(ref);
    const benchmarks = await plans.inputs(ref);
    const published = await publishedOf(store, nodes, ['corpus', 'tasks', 'trajectories', 'profile']);
    const bodies = <Body>(kind: NodeKind): [id: string, body: Body][] =>
      published
        .filter(({ node }) => node.kind === kind)
        .map(({ node, manifest }) => [node.id, manifest.body as unknown as Body]);
    const [corpus] = bodies<CorpusBody>('corpus').map(([, { pages, sources }]) => ({ pages, sources }));
    const report: Report = {
      benchmarks: inPlanOrder(nodes, benchmarks).map(({ manifest }) => manifest.body as unknown as BenchmarkBody),
      tasks: bodies<TasksBody>('tasks')[0]?.[1] ?? null,
      corpus: corpus ?? null,
      demonstrations: Object.fromEntries(bodies<TrajectoriesBody>('trajectories')),
      profiles: Object.fromEntries(bodies<ProfileBody>('profile')),
    };

    await mkdir(work, { recursive: true });
    const folder = await mkdtemp(join(work, 'report-'));
    try {
      const files = { 'report.json': join(folder, 'report.json'), 'report.md': join(folder, 'report.md') };
      await writeFile(files['report.json'], `${JSON.stringify(report, null, 2)}\n`);
      await writeFile(files['report.md'], renderReport((await plans.load(ref.plan)).name, report));
      await progress(ref.key, 1, 1, `${report.benchmarks.length} results`);
      const body = {
        benchmarks: report.benchmarks.map(({ benchmark, after, results }) => ({ benchmark, after, results })),
      };
      return await store.publish({
        key: ref.key,
        kind: 'report',
        inputs: await plans.lineage(ref),
        files,
        body,
        metrics: [],
      });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
});

/** Artifacts of some kinds that the benchmarks rest on. */
async function publishedOf(
  store: ArtifactStore,
  nodes: readonly PlanNode[],
  kinds: readonly NodeKind[],
): Promise<{ node: PlanNode; manifest: Manifest }[]> {
  const wanted = nodes.filter(({ kind }) => kinds.includes(kind));
  const found = await store.findAll(wanted.map(({ key }) => key));
  const manifests = wanted.map(async (node) => {
    const artifact = found.get(node.key);
    return artifact ? [{ node, manifest: await store.manifest(artifact) }] : [];
  });
  return (await Promise.all(manifests)).flat();
}

function inPlanOrder<T extends { id: string }>(nodes: readonly PlanNode[], inputs: readonly T[]): T[] {
  const place = new Map(nodes.map(({ id }, index) => [id, index]));
  return inputs.toSorted((a, b) => (place.get(a.id) as number) - (place.get(b.id) as number));
}

/** The report as Markdown. */
export function renderReport(name: string, report: Report): string {
  const benchmarks = [...new Set(report.benchmarks.map(({ benchmark }) => benchmark))];
  const sections = [
    `# ${name}`,
    ...benchmarks.flatMap((benchmark) =>
      benchmarkSection(report.benchmarks.filter((body) => body.benchmark === benchmark)),
    ),
    ...(report.tasks ? [tasksSection(report.tasks)] : []),
    ...trainingSection(report),
    ...(report.corpus ? [corpusSection(report.corpus)] : []),
  ];
  return `${sections.join('\n\n')}\n`;
}

function benchmarkSection(bodies: readonly BenchmarkBody[]): string[] {
  const [first] = bodies;
  if (!first) return [];
  const metrics = [...new Set(bodies.flatMap(({ results }) => Object.keys(results)))];
  const groups = [...new Set(bodies.flatMap(({ groups: named }) => Object.keys(named)))].sort();
  const rows = bodies.map((body) => [
    body.after,
    ...metrics.map((metric) => interval(body.results[metric])),
    percent(body.answer_in_observation),
    String(body.unfinished),
    String(body.masked),
  ]);
  return [
    `## ${first.benchmark}`,
    `${first.questions} questions, ${first.samples} samples each; per cent, with 95 % intervals by bootstrap over questions. A sample without an answer (unfinished) is wrong; one that the infrastructure broke (masked) is left out.`,
    table(
      ['after', ...metrics.map(metricTitle), 'answer seen', 'unfinished', 'masked'],
      [...rows, ...baselineRows(bodies, metrics.length)],
    ),
    ...(groups.length === 0
      ? []
      : [
          '### By capability, and by whether training showed the wording',
          table(
            ['group', 'questions', ...bodies.map(({ after }) => after)],
            groups.map((group) => [
              group,
              String(first.groups[group]?.questions ?? ''),
              ...bodies.map((body) => interval(body.groups[group])),
            ]),
          ),
        ]),
    '### Use of the tools, by sample',
    table(
      ['', ...bodies.map(({ after }) => after)],
      toolNames(bodies).map((use) => [
        use.replaceAll('_', ' '),
        ...bodies.map((body) => fixed(body.tool_use[use] ?? 0)),
      ]),
    ),
    `Protocol: \`${JSON.stringify(first.protocol)}\``,
  ];
}

/** What an unguided guesser gets stands once; what depends on the checkpoint stands for each. */
function baselineRows(bodies: readonly BenchmarkBody[], metrics: number): string[][] {
  const names = [...new Set(bodies.flatMap(({ baselines }) => Object.keys(baselines)))].sort();
  return names.flatMap((name) => {
    const having = bodies.filter(({ baselines }) => baselines[name]);
    const same = new Set(having.map(({ baselines }) => JSON.stringify(baselines[name]))).size === 1;
    return (same ? having.slice(0, 1) : having).map((body) => {
      const title = `${name.replaceAll('_', ' ')}${same ? '' : ` (${body.after})`}`;
      return [`*${title}*`, interval(body.baselines[name]), ...Array.from({ length: metrics + 2 }, () => '')];
    });
  });
}

function toolNames(bodies: readonly BenchmarkBody[]): string[] {
  return [...new Set(bodies.flatMap(({ tool_use }) => Object.keys(tool_use)))].sort();
}

function tasksSection({ tasks, splits, mix, dropped }: TasksBody): string {
  const rows = Object.entries(mix).map(([capability, { asked, realised }]) => [
    capability.replaceAll('_', ' '),
    String(asked),
    String(realised),
  ]);
  const inSplits = Object.entries(splits)
    .map(([split, count]) => `${count} ${split}`)
    .join(', ');
  const left = Object.entries(dropped)
    .map(([reason, times]) => `${reason.replaceAll('_', ' ')}: ${times}`)
    .join(', ');
  return [
    `## Tasks`,
    `${tasks} tasks: ${inSplits}.${left ? ` Candidates dropped: ${left}.` : ''}`,
    table(['capability', 'asked', 'realised'], rows),
  ].join('\n\n');
}

function trainingSection({ demonstrations, profiles }: Report): string[] {
  const shown = Object.entries(demonstrations).map(
    ([id, body]) =>
      `- ${id}: ${body.trajectories} trajectories, ${body.instances} after resampling, ${body.tokens} tokens, ${percent(body.masked_share)} % of them masked${dropsOf(body.dropped)}.`,
  );
  const profiled = Object.entries(profiles).map(
    ([id, body]) =>
      `- ${id}: of ${body.tasks} tasks ${body.never} never solved, ${body.sometimes} sometimes, ${body.always} always; ${body.kept} kept.`,
  );
  const lines = [...shown, ...profiled];
  return lines.length === 0 ? [] : [`## Training data\n\n${lines.join('\n')}`];
}

function dropsOf(dropped: Readonly<Record<string, number>>): string {
  const parts = Object.entries(dropped).map(([reason, times]) => `${reason.replaceAll('_', ' ')} ${times}`);
  return parts.length === 0 ? '' : `; dropped: ${parts.join(', ')}`;
}

function corpusSection({ pages, sources }: Pick<CorpusBody, 'pages' | 'sources'>): string {
  const rows = sources.map(({ name, kind, licence, provenance, pages: count }) => [
    name,
    kind,
    String(count),
    licence,
    provenance,
  ]);
  return [`## Corpus`, `${pages} pages.`, table(['source', 'kind', 'pages', 'licence', 'provenance'], rows)].join(
    '\n\n',
  );
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

function metricTitle(metric: string): string {
  return metric.replace('_at_', '@');
}

function interval(estimate: { value: number; low: number; high: number } | undefined): string {
  return estimate ? `${percent(estimate.value)} (${percent(estimate.low)}–${percent(estimate.high)})` : '';
}

function percent(share: number): string {
  return (100 * share).toFixed(1);
}

function fixed(value: number): string {
  return value.toFixed(value < 10 ? 2 : 0);
}
