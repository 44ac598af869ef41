import { parseArgs } from 'node:util';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Command, CommandIo } from '../command.ts';
import { type ComparedRow, type Comparison, compareRuns } from '../comparison.ts';
import { withStack } from '../open-stack.ts';
import { findRun } from '../run-state.ts';
import { type Column, detectTerminal, renderTable } from '../terminal.ts';

export const command: Command = {
  name: 'compare',
  summary: 'Compare arms and runs, question by question, with a control.',
  usage: 'compare RUN [RUN …] [--metric M] [--at STAGE] [--control ARM] [--csv | --markdown | --json] [--profile P]',
  help: `  --metric M       eval/BENCHMARK/METRIC; by default the first metric of every benchmark
  --at STAGE       the checkpoint: a stage, base, or last (default)
  --control ARM    what the others are compared with (default: the arm control, else the first)
  Arms that differ only in their seed are one row: each question counts with its mean over seeds.
  Differences are paired by question: 95 % intervals by bootstrap, p by a two-sided sign-flip permutation test.
  Arms measured by another protocol are not put beside the others; what differs is said.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        metric: { type: 'string' },
        at: { type: 'string', default: 'last' },
        control: { type: 'string' },
        csv: { type: 'boolean', default: false },
        markdown: { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
        profile: { type: 'string' },
      },
    });
    if (positionals.length === 0) throw new ExpError('USAGE', 'exp compare', 'wants a RUN, or several');
    return withStack(values.profile, async ({ pool, store }) => {
      const rows = await Promise.all(positionals.map((wanted) => findRun(pool, wanted)));
      const runs = await Promise.all(
        rows.map(async ({ id, plan_blob }) => ({ id, plan: await store.readJson<Plan>(plan_blob) })),
      );
      const comparisons = await compareRuns(store, runs, values);
      if (values.json) io.out(JSON.stringify({ comparisons }));
      else for (const comparison of comparisons) show(comparison, values, io);
      return ExitCode.done;
    });
  },
};

function show(comparison: Comparison, { csv, markdown }: { csv: boolean; markdown: boolean }, io: CommandIo): void {
  const { titles, rows } = tableOf(comparison);
  if (csv) {
    for (const cells of [titles, ...rows]) io.out(cells.map(csvCell).join(','));
    return;
  }
  const { benchmark, metric, control, refused, missing } = comparison;
  const questions = comparison.rows.find(({ paired }) => paired !== null)?.paired?.questions;
  const heading = `${benchmark}, ${metric.replace('_at_', '@')} in per cent, against ${control}${questions === undefined ? '' : ` on ${questions} questions`}`;
  io.out(heading);
  if (markdown) {
    io.out('');
    for (const cells of [titles, titles.map(() => '---'), ...rows]) io.out(`| ${cells.join(' | ')} |`);
  } else {
    const columns = titles.map((title): Column => ({ title, align: NUMBERS.has(title) ? 'right' : 'left' }));
    for (const line of renderTable(detectTerminal(io), columns, rows)) io.out(line);
  }
  for (const { name, reason } of refused)
    io.out(`${name} was measured by another protocol and is not compared: ${reason}`);
  if (missing.length > 0) io.out(`without a result: ${missing.join(', ')}`);
}

const NUMBERS = new Set(['seeds', 'value', 'difference', 'p', 'won–lost']);

function tableOf({ rows }: Comparison): { titles: string[]; rows: string[][] } {
  const leaves = Object.keys(rows[0]?.differs ?? {});
  const titles = ['arm', ...leaves, 'after', 'seeds', 'value', 'difference', 'p', 'won–lost'];
  return {
    titles,
    rows: rows.map((row) => [
      row.name,
      ...leaves.map((leaf) => row.differs[leaf] ?? ''),
      row.after,
      String(row.seeds.length),
      percent(row.value),
      ...pairedCells(row),
    ]),
  };
}

function pairedCells({ paired }: ComparedRow): string[] {
  if (paired === null) return ['', '', ''];
  return [percent(paired.difference, '+'), paired.p_value.toFixed(3), `${paired.wins}–${paired.losses}`];
}

function percent({ value, low, high }: { value: number; low: number; high: number }, sign = ''): string {
  const show = (share: number): string => `${share > 0 ? sign : ''}${(100 * share).toFixed(1)}`;
  return `${show(value)} [${show(low)}, ${show(high)}]`;
}

const csvCell = (text: string): string => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
