import { parseArgs } from 'node:util';
import type { Command } from '../command.ts';
import { followRun } from '../follow-run.ts';
import { openStack, withStack } from '../open-stack.ts';
import { findRun, runArgument } from '../run-state.ts';

export const command: Command = {
  name: 'watch',
  summary: 'Follow a run live: a picture on a terminal, plain lines in a pipe.',
  usage: 'watch RUN|latest [--plain] [--profile P] [--json]',
  help: [
    'RUN may be shortened to a beginning that only one run has.',
    'Ctrl-C detaches; the run goes on. The exit code is that of the run: 0 done, 1 failed, 3 gate failed.',
    '  --plain   lines instead of a picture',
    '  --json    lines to stderr, at the end {run, status} to stdout',
  ].join('\n'),
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        plain: { type: 'boolean', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const wanted = runArgument(positionals, 'watch');
    return withStack(values.profile, async (stack, profile) => {
      const { id } = await findRun(stack.pool, wanted);
      const { state, exitCode } = await followRun({
        run: id,
        stack,
        io,
        reopen: () => openStack(profile),
        say: values.json ? (line) => io.err(line) : (line) => io.out(line),
        live: io.isTTY && !values.plain && !values.json,
      });
      if (values.json) io.out(JSON.stringify({ run: id, status: state?.status ?? 'running' }));
      return exitCode;
    });
  },
};
