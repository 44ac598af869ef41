import { parseArgs } from 'node:util';
import { ExitCode } from '../../schemas/errors.ts';
import type { Command } from '../command.ts';
import { withStack } from '../open-stack.ts';
import { runArgument } from '../run-state.ts';
import { findActiveRun, updateWorkflow } from '../update-run.ts';

export const command: Command = {
  name: 'continue',
  summary: 'Let a paused run go on.',
  usage: 'continue RUN|latest [--profile P] [--json]',
  help: 'A run that its budget paused is paused again unless `exp budget` raises the bound.',
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: { profile: { type: 'string' }, json: { type: 'boolean', default: false } },
    });
    const wanted = runArgument(positionals, 'continue');
    return withStack(values.profile, async (stack) => {
      const row = await findActiveRun(stack, wanted);
      const wasPaused = await updateWorkflow<boolean>(stack, {
        row,
        workflowId: `run/${row.id}`,
        update: 'continue',
      });
      if (values.json) io.out(JSON.stringify({ run: row.id, status: row.status, paused: null }));
      else io.out(wasPaused ? `${row.id} goes on` : `${row.id} was not paused`);
      return ExitCode.done;
    });
  },
};
