import { parseArgs } from 'node:util';
import { ExitCode } from '../../schemas/errors.ts';
import type { Command } from '../command.ts';
import { withStack } from '../open-stack.ts';
import { type RunPause, runArgument } from '../run-state.ts';
import { findActiveRun, updateWorkflow } from '../update-run.ts';

export const command: Command = {
  name: 'pause',
  summary: 'Hold a run back: what is in flight is finished, nothing new is begun.',
  usage: 'pause RUN|latest [--reason TEXT] [--profile P] [--json]',
  help: [
    'Stages stop after the step, rollouts after the batches they are at, and leave engine and trainer to others. A node',
    'that another run waits for as well goes on. A pause outlives restarts; `exp continue RUN` ends it.',
    '  --reason TEXT   shown by `exp status`',
  ].join('\n'),
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        reason: { type: 'string', default: 'by hand' },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const wanted = runArgument(positionals, 'pause');
    return withStack(values.profile, async (stack) => {
      const row = await findActiveRun(stack, wanted);
      const paused = await updateWorkflow<RunPause>(stack, {
        row,
        workflowId: `run/${row.id}`,
        update: 'pause',
        input: { reason: values.reason },
      });
      if (values.json) io.out(JSON.stringify({ run: row.id, status: row.status, paused }));
      else io.out(`${row.id} is paused: ${paused.reason}; to go on: exp continue ${row.id}`);
      return ExitCode.done;
    });
  },
};
