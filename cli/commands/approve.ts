import { parseArgs } from 'node:util';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Command } from '../command.ts';
import { withStack } from '../open-stack.ts';
import { type GateState, RunReader, type RunState } from '../run-state.ts';
import { findActiveRun, updateWorkflow } from '../update-run.ts';

export const command: Command = {
  name: 'approve',
  summary: 'Answer a gate that asks: let the stages after it begin, or not.',
  usage: 'approve RUN|latest GATE [--reject] [--arm ARM] [--profile P] [--json]',
  help: [
    'GATE is the stage that the gate stands after; `exp status RUN` shows which gates ask, and why.',
    '  --reject    the stages after it are skipped, and the run ends with exit code 3',
    '  --arm ARM   which arm is meant, where the gate asks in more than one',
  ].join('\n'),
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        reject: { type: 'boolean', default: false },
        arm: { type: 'string' },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const [wanted, gate, ...more] = positionals;
    if (wanted === undefined || gate === undefined || more.length > 0)
      throw new ExpError('USAGE', 'exp approve', 'wants one RUN and one GATE');
    return withStack(values.profile, async (stack) => {
      const row = await findActiveRun(stack, wanted);
      const arm = chooseArm(await new RunReader(stack, row.id).read(), gate, values.arm);
      const state = await updateWorkflow<GateState>(stack, {
        row,
        workflowId: `arm/${row.id}/${arm}`,
        update: 'approve',
        input: { gate, approved: !values.reject },
      });
      if (values.json) io.out(JSON.stringify({ run: row.id, arm, gate, approved: !values.reject, value: state.value }));
      else
        io.out(
          `gate after ${gate} ${values.reject ? 'rejected' : 'approved'}: ${row.id}${arm === 'main' ? '' : ` ${arm}`}`,
        );
      return ExitCode.done;
    });
  },
};

/** The one arm in which the gate asks. Where it asks in none, the workflow itself says why. Throws USAGE. */
function chooseArm({ run, arms }: RunState, gate: string, wanted: string | undefined): string {
  if (wanted !== undefined) {
    if (!arms.some(({ arm }) => arm === wanted)) throw new ExpError('USAGE', run, `it has no arm ${wanted}`);
    return wanted;
  }
  const asking = arms.filter(({ gates }) => gates.some(({ name, status }) => name === gate && status === 'asks'));
  if (asking.length > 1) {
    const names = asking.map(({ arm }) => arm).join(', ');
    throw new ExpError(
      'USAGE',
      run,
      `the gate after ${gate} asks in ${asking.length} arms: say --arm with one of ${names}`,
    );
  }
  const [only] = asking.length > 0 ? asking : arms;
  if (!only) throw new ExpError('USAGE', run, 'it has no arms');
  return only.arm;
}
