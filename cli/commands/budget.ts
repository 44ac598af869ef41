import { parseArgs } from 'node:util';
import { setBounds } from '../../activities/adapters/spend-ledger.ts';
import { BOUNDED, type Bounds } from '../../activities/budget.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Command } from '../command.ts';
import { withStack } from '../open-stack.ts';
import { findRun, RunReader, runArgument, spendLine } from '../run-state.ts';
import { updateWorkflow } from '../update-run.ts';

export const command: Command = {
  name: 'budget',
  summary: 'Show what a run has spent, and set its bounds.',
  usage: 'budget RUN|latest [tokens=N] [tool_calls=N] [gpu_hours=N] [money=N] [--profile P] [--json]',
  help: [
    'A run that its budget paused goes on when a bound is raised. Of a run that has ended, the bounds hold from the next',
    '`exp resume`. The spec keeps what it says: bounds decide no result.',
    'example: exp budget latest tool_calls=2000',
  ].join('\n'),
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: { profile: { type: 'string' }, json: { type: 'boolean', default: false } },
    });
    const [run, ...assignments] = positionals;
    const wanted = runArgument(run === undefined ? [] : [run], 'budget');
    const bounds = Object.fromEntries(assignments.map(readBound)) as Bounds;
    return withStack(values.profile, async (stack, profile) => {
      const row = await findRun(stack.pool, wanted);
      let wentOn = false;
      if (assignments.length > 0 && row.status === 'running') {
        const workflowId = `run/${row.id}`;
        const answer = await updateWorkflow<{ went_on: boolean }>(stack, {
          row,
          workflowId,
          update: 'set_budget',
          input: { bounds },
        });
        wentOn = answer.went_on;
      } else if (assignments.length > 0) await setBounds(stack.pool, row.id, bounds);
      const { spend } = await new RunReader(stack, row.id, profile.prices).read();
      if (values.json) io.out(JSON.stringify({ run: row.id, status: row.status, spend }));
      else io.out(`${row.id}: ${spendLine(spend)}${wentOn ? '; it goes on' : ''}`);
      return ExitCode.done;
    });
  },
};

/** `tool_calls=200`. Throws USAGE. */
function readBound(text: string): [string, number] {
  const [name = '', value = ''] = text.split('=', 2);
  const bound = Number(value);
  if (!(BOUNDED as readonly string[]).includes(name))
    throw new ExpError(
      'USAGE',
      'exp budget',
      `${JSON.stringify(name.slice(0, 40))} is no bound; there is ${BOUNDED.join(', ')}`,
    );
  if (value.trim() === '' || !Number.isFinite(bound) || bound < 0)
    throw new ExpError('USAGE', 'exp budget', `${name} wants a number, at least 0`);
  return [name, bound];
}
