import { parseArgs } from 'node:util';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Command, CommandIo } from '../command.ts';
import { type ComparedRow, type Comparison, compareRuns } from '../comparison.ts';
import { type DifferenceColumn, differenceColumns } from '../comparison-columns.ts';
import { type Stack, withStack } from '../open-stack.ts';
import { findRun, type RunRow } from '../run-state.ts';
import { sendToMlflow } from '../send-to-mlflow.ts';
import { type Column, detectTerminal, renderTable } from '../terminal.ts';

export const command: Command = {
  name: 'compare',
  summary: 'Compare arms and runs, question by question, with a control.',
  usage: 'compare RUN… | --ablations RUN [--metric M] [--at STAGE] [--control ARM] [--csv | --markdown | --json]',
  help: `  --ablations RUN  the arms of one run, as its spec says under compare
  --metric M       eval/BENCHMARK/METRIC; by default the first metric of every benchmark
  --at STAGE       the checkpoint: a stage, base, or last (default)
  --control ARM    what the others are compared with (default: the arm control, else the first)
  --profile P      name or path of a profile (default: local)
  What is not given here is as the first run's spec says under compare.
  Arms that differ only in their seed are one row: each question counts with its mean over seeds; the rows below it
  are the seeds alone.
  Differences are paired by question: 95 % intervals by bootstrap, p by a two-sided sign-flip permutation test.
  Arms measured by another protocol are not put beside the others; what differs is said.
  The comparison of one run is also logged to MLflow, as comparison.md and comparison.json of the run.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        metric: { type: 'string' },
        ablations: { type: 'string' },
        at: { type: 'string' },
        control: { type: 'string' },
        csv: { type: 'boolean', default: false },
        markdown: { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
        profile: { type: 'string' },
      },
    });
    const wanted = [...(values.ablations === undefined ? [] : [values.ablations]), ...positionals];
    if (wanted.length === 0) throw new ExpError('USAGE', 'exp compare', 'wants a RUN, or several');
    return withStack(values.profile, async (stack) => {
      const { pool, store } = stack;
      const rows = await Promise.all(wanted.map((name) => findRun(pool, name)));
      const runs = await Promise.all(
        rows.map(async ({ id, plan_blob }) => ({ id, plan: await store.readJson<Plan>(plan_blob) })),
      );
      const { metric, at, control } = values;
      const comparisons = await compareRuns(store, runs, { metric, at, control });
      if (values.json) io.out(JSON.stringify({ comparisons }));
      else for (const comparison of comparisons) for (const line of linesOf(comparison, values, io)) io.out(line);
      const [only, ...others] = rows;
      if (only !== undefined && others.length === 0) io.err(await keepInMlflow(stack, only, comparisons));
      return ExitCode.done;
    });
  },
};

/** The table and the intervals stand beside the run's other files; what came of it, in words. */
async function keepInMlflow(stack: Stack, row: RunRow, comparisons: readonly Comparison[]): Promise<string> {
  const lines = comparisons.flatMap((comparison) => [...markdownOf(comparison), ...notesOf(comparison), '']);
  const table = { name: 'comparison.md', content: Buffer.from(lines.join('\n')) };
  const data = { name: 'comparison.json', content: Buffer.from(`${JSON.stringify({ comparisons }, null, 2)}\n`) };
  const [said] = await Promise.all([table, data].map((file) => sendToMlflow(stack, row, file)));
  return said as string;
}

function* linesOf(
  comparison: Comparison,
  { csv, markdown }: { csv: boolean; markdown: boolean },
  io: CommandIo,
): Generator<string> {
  if (csv) {
    const { titles, rows } = tableOf(comparison, leafColumns(comparison));
    for (const cells of [titles, ...rows]) yield cells.map(csvCell).join(',');
    return;
  }
  if (markdown) yield* markdownOf(comparison);
  else {
    const { titles, rows } = tableOf(comparison, differenceColumns(comparison.rows));
    yield headingOf(comparison);
    const columns = titles.map((title): Column => ({ title, align: NUMBERS.has(title) ? 'right' : 'left' }));
    yield* renderTable(detectTerminal(io), columns, rows);
  }
  yield* notesOf(comparison);
}

function headingOf({ benchmark, metric, control, rows }: Comparison): string {
  const questions = rows.find(({ paired }) => paired !== null)?.paired?.questions;
  return `${benchmark}, ${metric.replace('_at_', '@')} in per cent, against ${control}${questions === undefined ? '' : ` on ${questions} questions`}`;
}

function* markdownOf(comparison: Comparison): Generator<string> {
  const { titles, rows } = tableOf(comparison, differenceColumns(comparison.rows));
  yield headingOf(comparison);
  yield '';
  for (const cells of [titles, titles.map(() => '---'), ...rows]) yield `| ${cells.join(' | ')} |`;
}

/** What stands beside the table, and what could not. */
function* notesOf({ rows, references, refused, missing }: Comparison): Generator<string> {
  for (const { title, path } of differenceColumns(rows)) if (title !== path) yield `${title} is ${path}`;
  for (const { name, protocol } of references)
    yield `${name} is a published number, not measured here and not compared: ${protocol}`;
  for (const { name, reason } of refused)
    yield `${name} was measured by another protocol and is not compared: ${reason}`;
  if (missing.length > 0) yield `without a result: ${missing.join(', ')}`;
}

const NUMBERS = new Set(['seeds', 'value', 'difference', 'p', 'won–lost']);

/** Arms, below each of several seeds those alone, and at the end what others have published. */
function tableOf(
  { rows, references }: Comparison,
  columns: readonly DifferenceColumn[],
): { titles: string[]; rows: string[][] } {
  const titles = [
    'arm',
    ...columns.map(({ title }) => title),
    'after',
    'seeds',
    'value',
    'difference',
    'p',
    'won–lost',
  ];
  const blank = columns.map(() => '');
  const ours = rows.flatMap((row, at) => [
    [
      row.name,
      ...columns.map(({ cells }) => cells[at] ?? ''),
      row.after,
      String(row.seeds.length),
      percent(row.value),
      ...pairedCells(row),
    ],
    ...(row.seeds.length > 1 ? row.seeds : []).map(({ seed, value }) => [
      `  ${seed}`,
      ...blank,
      row.after,
      '',
      percent(value),
      '',
      '',
      '',
    ]),
  ]);
  const theirs = references.map(({ name, value }) => [
    `${name} (published)`,
    ...blank,
    '',
    '',
    (100 * value).toFixed(1),
    '',
    '',
    '',
  ]);
  return { titles, rows: [...ours, ...theirs] };
}

/** For programs: every leaf under its whole path. */
const leafColumns = ({ rows }: Comparison): DifferenceColumn[] =>
  Object.keys(rows[0]?.differs ?? {}).map((path) => ({
    title: path,
    path,
    cells: rows.map(({ differs }) => differs[path] ?? ''),
  }));

function pairedCells({ paired }: ComparedRow): string[] {
  if (paired === null) return ['', '', ''];
  return [percent(paired.difference, '+'), paired.p_value.toFixed(3), `${paired.wins}–${paired.losses}`];
}

function percent({ value, low, high }: { value: number; low: number; high: number }, sign = ''): string {
  const show = (share: number): string => `${share > 0 ? sign : ''}${(100 * share).toFixed(1)}`;
  return `${show(value)} [${show(low)}, ${show(high)}]`;
}

const csvCell = (text: string): string => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
