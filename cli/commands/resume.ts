import { parseArgs } from 'node:util';
import type { Command } from '../command.ts';
import { followRun } from '../follow-run.ts';
import { openStack, withStack } from '../open-stack.ts';
import { findRun, runArgument } from '../run-state.ts';
import { resumeRun } from '../start-run.ts';

export const command: Command = {
  name: 'resume',
  summary: 'Go on with a run that failed or was cancelled, from its frozen plan; what is done is reused.',
  usage: 'resume RUN|latest [--watch] [--profile P] [--json]',
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        watch: { type: 'boolean', short: 'w', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const wanted = runArgument(positionals, 'resume');
    return withStack(values.profile, async (stack, profile) => {
      const row = await findRun(stack.pool, wanted);
      const say = values.json ? (line: string) => io.err(line) : (line: string) => io.out(line);
      if (row.status === 'done') {
        say(`${row.id} is done; there is nothing to go on with`);
        if (values.json) io.out(JSON.stringify({ run: row.id, status: row.status }));
        return 0;
      }
      const { created } = await resumeRun(stack, row);
      say(created ? `${row.id} goes on` : `${row.id} is active`);
      if (!values.watch) {
        if (values.json) io.out(JSON.stringify({ run: row.id, status: 'running' }));
        else io.out(`to follow it: exp watch ${row.id}`);
        return 0;
      }
      const live = io.isTTY && !values.json;
      const { state, exitCode } = await followRun({
        run: row.id,
        stack,
        io,
        reopen: () => openStack(profile),
        say,
        live,
      });
      if (values.json) io.out(JSON.stringify({ run: row.id, status: state?.status ?? 'running' }));
      return exitCode;
    });
  },
};
