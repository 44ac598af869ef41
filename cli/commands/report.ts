import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Command } from '../command.ts';
import { withStack } from '../open-stack.ts';
import { collectReport } from '../report/collect.ts';
import { refuseForeignFile, writePage } from '../report/write-page.ts';
import { findRun, runArgument } from '../run-state.ts';
import { sendToMlflow } from '../send-to-mlflow.ts';

export const command: Command = {
  name: 'report',
  summary: 'Write a run as one HTML page: results, curves, timeline, trajectories.',
  usage: 'report RUN [--out FILE] [--trajectories N] [--control ARM] [--json] [--profile P]',
  help: `  RUN                the id of a run, the beginning of one, or latest
  --out FILE         where to write (default: RUN.report.html in this folder)
  --trajectories N   trajectories the reader holds at most (default 10000); of more, a seeded sample
  --control ARM      the arm that others are compared with (default: the arm control, else the first)
  --json             print the report's data, without trajectories, instead of writing a page
  The page needs no network. It is also logged to MLflow as report.html of the run.
  A report that is there already is written again; any other file is not touched.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        out: { type: 'string' },
        trajectories: { type: 'string', default: '10000' },
        control: { type: 'string' },
        json: { type: 'boolean', default: false },
        profile: { type: 'string' },
      },
    });
    const wanted = runArgument(positionals, 'report');
    const trajectories = countOf(values.trajectories);
    return withStack(values.profile, async (stack, profile) => {
      const row = await findRun(stack.pool, wanted);
      const out = resolve(values.out ?? `${row.id}.report.html`);
      if (!values.json) await refuseForeignFile(out);
      const { report, shown } = await collectReport(stack, profile, {
        row,
        trajectories: values.json ? 0 : trajectories,
        control: values.control,
        onFile: (done, files) => {
          if (io.isTTY && done % 50 === 0) io.err(`reading trajectories: file ${done + 1} of ${files}`);
        },
      });
      if (values.json) {
        io.out(JSON.stringify(report));
        return ExitCode.done;
      }
      await writePage(out, report, shown());
      const { total, embedded } = report.trajectories;
      const megabytes = ((await stat(out)).size / 1e6).toFixed(1);
      io.out(`${out}: ${megabytes} MB, ${embedded} of ${total} trajectories`);
      for (const note of report.notes) io.out(`note: ${note}`);
      io.out(await sendToMlflow(stack, row, { name: 'report.html', content: out }));
      return ExitCode.done;
    });
  },
};

function countOf(text: string): number {
  if (!/^\d{1,6}$/.test(text))
    throw new ExpError('USAGE', `--trajectories ${text}`, 'wants a whole number from 0 to 999999');
  return Number(text);
}
