/** Benchmarks with their intervals, beside baselines and published numbers, and arms beside the control. */
import { dot, link as rule, ruleX, text } from '@observablehq/plot';
import type { ArmComparison, Interval, ReportedBenchmark, RunReport } from '../document.ts';
import { el, lazily, section, table } from './dom.ts';
import { figure, SERIES } from './figure.ts';
import { count, difference, interval, metricTitle, number, percent, words } from './format.ts';

export function results({ benchmarks, comparisons, arms }: RunReport): HTMLElement {
  return section(
    'results',
    'Results',
    benchmarks.length === 0 ? el('p', {}, 'No benchmark has a result.') : null,
    ...benchmarks.flatMap((benchmark) => [
      el('h3', {}, benchmark.name),
      benchmarkTable(benchmark, arms.length > 1),
      benchmarkPicture(benchmark, arms.length > 1),
      groupsTable(benchmark, arms.length > 1),
      lazily(`Protocol of ${benchmark.name}`, () => [el('pre', {}, JSON.stringify(benchmark.protocol, null, 2))]),
    ]),
    ...comparisons.map(forest),
  );
}

type Row = ReportedBenchmark['rows'][number];

/** What more arms share is counted, not listed. */
const NAMED_ARMS = 3;

function rowName({ arms, body }: Row, severalArms: boolean): string {
  const users = arms.length > NAMED_ARMS ? `${arms.length} arms` : arms.join(', ');
  return severalArms ? `${body.after} (${users})` : body.after;
}

/** A baseline that came out the same everywhere is one row. */
function baselinesOf({ rows }: ReportedBenchmark, severalArms: boolean): { name: string; value: Interval }[] {
  const names = [...new Set(rows.flatMap(({ body }) => Object.keys(body.baselines)))];
  return names.flatMap((name) => {
    const having = rows.filter(({ body }) => body.baselines[name] !== undefined);
    const same = new Set(having.map(({ body }) => JSON.stringify(body.baselines[name]))).size === 1;
    return (same ? having.slice(0, 1) : having).map((row) => ({
      name: same ? words(name) : `${words(name)} (${rowName(row, severalArms)})`,
      value: row.body.baselines[name] as Interval,
    }));
  });
}

function benchmarkTable(benchmark: ReportedBenchmark, severalArms: boolean): HTMLElement {
  const { metrics, rows, references } = benchmark;
  const blank = (used: number): string[] => Array.from({ length: metrics.length + 3 - used }, () => '');
  return table(
    `${count(benchmark.questions)} questions × ${benchmark.samples}, per cent with 95 % intervals by bootstrap over questions. Unfinished samples are wrong; broken ones are left out.`,
    {
      head: ['after', ...metrics.map(metricTitle), 'answer seen', 'unfinished', 'broken'],
      rows: [
        ...rows.map((row) => [
          rowName(row, severalArms),
          ...metrics.map((metric) => (row.body.results[metric] ? interval(row.body.results[metric]) : '')),
          percent(row.body.answer_in_observation),
          row.body.unfinished,
          row.body.masked,
        ]),
        ...baselinesOf(benchmark, severalArms).map(({ name, value }) => [
          `baseline: ${name}`,
          interval(value),
          ...blank(1),
        ]),
        ...references.map(({ name, protocol, value }) => [
          `published: ${words(name)}, by another protocol: ${protocol}`,
          percent(value),
          ...blank(1),
        ]),
      ],
      numbers: Array.from({ length: metrics.length + 3 }, (_, column) => column + 1),
    },
  );
}

function benchmarkPicture(benchmark: ReportedBenchmark, severalArms: boolean): HTMLElement {
  const [metric = ''] = benchmark.metrics;
  const marks = [
    ...benchmark.rows.flatMap((row) => {
      const value = row.body.results[metric];
      return value === undefined ? [] : [{ name: rowName(row, severalArms), kind: 'measured', ...value }];
    }),
    ...baselinesOf(benchmark, severalArms).map(({ name, value }) => ({ name, kind: 'baseline', ...value })),
    ...benchmark.references.map(({ name, value }) => ({
      name: words(name),
      kind: 'published',
      value,
      low: value,
      high: value,
    })),
  ];
  return figure({
    title: `${benchmark.name}, ${metricTitle(metric)}`,
    description: 'Points with their 95 % intervals; published numbers have none and are of another protocol.',
    options: intervalPlot(marks, { label: `${metricTitle(metric)}, per cent`, show: ({ value }) => percent(value) }),
    numbers: () => ({
      head: ['what', 'kind', 'value', 'low', 'high'],
      rows: marks.map(({ name, kind, value, low, high }) => [name, kind, percent(value), percent(low), percent(high)]),
      numbers: [2, 3, 4],
    }),
  });
}

interface IntervalMark extends Interval {
  name: string;
  kind: string;
}

const KINDS = ['measured', 'baseline', 'published'];

function intervalPlot(
  marks: readonly IntervalMark[],
  { label, show, zero = false }: { label: string; show: (mark: IntervalMark) => string; zero?: boolean },
) {
  const kinds = KINDS.filter((kind) => marks.some((mark) => mark.kind === kind));
  return {
    height: 50 + 28 * marks.length,
    marginLeft: 260,
    marginRight: 60,
    x: { label, grid: true, nice: true, tickFormat: (share: number) => number(100 * share) },
    y: { label: null, domain: marks.map(({ name }) => name) },
    color: {
      domain: kinds,
      range: kinds.map((kind) => SERIES[[0, 7, 3][KINDS.indexOf(kind)] as number] as string),
      legend: kinds.length > 1,
    },
    symbol: {
      domain: kinds,
      range: kinds.map((kind) => ['circle', 'square', 'diamond'][KINDS.indexOf(kind)] as 'circle'),
    },
    marks: [
      ...(zero ? [ruleX([0], { stroke: 'var(--quiet)', strokeDasharray: '4 3' })] : []),
      rule(marks, { x1: 'low', x2: 'high', y1: 'name', y2: 'name', stroke: 'kind', strokeWidth: 2 }),
      dot(marks, {
        x: 'value',
        y: 'name',
        fill: 'kind',
        symbol: 'kind',
        r: 5,
        title: (mark: IntervalMark) => `${mark.name}: ${show(mark)}`,
      }),
      text(marks, { x: 'high', y: 'name', text: show, dx: 9, textAnchor: 'start', fill: 'var(--text)' }),
    ],
  };
}

function groupsTable({ rows }: ReportedBenchmark, severalArms: boolean): HTMLElement | null {
  const groups = [...new Set(rows.flatMap(({ body }) => Object.keys(body.groups)))].sort();
  if (groups.length === 0) return null;
  return lazily('By capability, and by whether training showed the wording', () => [
    table('The first metric, per cent', {
      head: ['group', 'questions', ...rows.map((row) => rowName(row, severalArms))],
      rows: groups.map((group) => [
        words(group),
        rows.find(({ body }) => body.groups[group])?.body.groups[group]?.questions ?? '',
        ...rows.map(({ body }) => (body.groups[group] ? interval(body.groups[group]) : '')),
      ]),
      numbers: [1, ...rows.map((_, column) => column + 2)],
    }),
  ]);
}

function forest(comparison: ArmComparison): HTMLElement {
  const { benchmark, metric, control, rows, refused, missing } = comparison;
  const marks = rows.flatMap(({ name, paired }) =>
    paired === null ? [] : [{ name, kind: 'measured', ...paired.difference }],
  );
  const title = `Arms beside ${control}: ${benchmark}, ${metricTitle(metric)}`;
  return el(
    'div',
    {},
    figure({
      title,
      description: `Difference to ${control} in percentage points, paired by question, with 95 % intervals. Right of the dashed line is better.`,
      options: intervalPlot(marks, {
        label: `difference to ${control}, percentage points`,
        show: ({ value }) => `${value > 0 ? '+' : ''}${percent(value)}`,
        zero: true,
      }),
      numbers: () => forestNumbers(comparison),
    }),
    ...refused.map(({ name, reason }) =>
      el('p', {}, `${name} was measured by another protocol and is not compared: ${reason}`),
    ),
    missing.length > 0 ? el('p', {}, `Without a result: ${missing.join(', ')}.`) : null,
  );
}

function forestNumbers({ rows, metric }: ArmComparison) {
  const leaves = Object.keys(rows[0]?.differs ?? {});
  const before = 1 + leaves.length;
  return {
    head: ['arm', ...leaves, 'after', 'seeds', metricTitle(metric), 'difference', 'p', 'won–lost'],
    rows: rows.map(({ name, differs, after, seeds, value, paired }) => [
      name,
      ...leaves.map((leaf) => differs[leaf] ?? ''),
      after,
      seeds,
      interval(value),
      paired === null ? '' : difference(paired.difference),
      paired === null ? '' : paired.p_value.toFixed(3),
      paired === null ? '' : `${paired.wins}–${paired.losses}`,
    ]),
    numbers: [1, 2, 3, 4, 5].map((column) => before + column),
  };
}
